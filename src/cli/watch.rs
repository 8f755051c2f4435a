//! `watch`: a run live, driven by watches. On a terminal it is drawn in place, elsewhere each change is a line.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior};

use super::complete;
use super::connect::{Connection, steps_of};
use super::fault::{Code, Fault};
use super::line::{RenderOptions, View};
use super::print::put;
use super::rows::rows;
use super::target::Target;
use super::text::{self, clock, quote};
use super::wait::{self, Ways};
use super::{held, tree};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// Watch a run until it ends
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The exit code is the run's: 0 completed, 1 failed or cancelled, 3 waits for people (with --until-wait), 4 gone.

Without a terminal each change is a line, and below each new wait stand the commands that end it.

Examples:
  kubectl lockstep watch shop
  kubectl lockstep watch shop --until-wait; test $? = 3 && notify 'the run waits'")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
    /// Leave with 3 as soon as the run waits for people
    #[arg(long)]
    until_wait: bool,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let name = match Target::parse(&args.run)? {
        Target::Name(name) => name,
        Target::Step(name, _) => {
            return Err(Fault::usage(format!(
                "watch takes a whole run; write kubectl lockstep watch {}",
                quote(&name)
            )));
        }
    };
    if !on.output.is_text() {
        return Err(Fault::usage("watch prints text only; for objects use kubectl get -w, or show -o json"));
    }
    let run = on.workflow(&name).await?;
    follow(on, run, if args.until_wait { Until::Wait } else { Until::End }).await
}

/// How long a run is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    End,
    /// Until it ends, or waits for people.
    Wait,
}

/// An event of the watch of a run, or of the watch of its StepRuns.
pub enum RunEvent {
    Run(Box<watcher::Result<Event<Workflow>>>),
    Step(Box<watcher::Result<Event<StepRun>>>),
}

/// Watches a run and its StepRuns, by the run's name.
pub fn run_events(on: &Connection, name: &str) -> BoxStream<'static, RunEvent> {
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let runs = on.watch::<Workflow>(fields);
    let fields = watcher::Config::default().fields(&steps_of(name));
    let steps = on.watch::<StepRun>(fields);
    stream::select(
        runs.map(|run| RunEvent::Run(Box::new(run))).boxed(),
        steps.map(|step| RunEvent::Step(Box::new(step))).boxed(),
    )
    .boxed()
}

/// What is known of the run by now.
pub struct Scene {
    pub run: Workflow,
    steps: BTreeMap<String, StepRun>,
    /// Steps of a list that is not complete yet.
    arriving: BTreeMap<String, StepRun>,
    present: bool,
    run_known: bool,
    steps_known: bool,
}

impl Scene {
    pub fn new(run: Workflow) -> Self {
        Self {
            run,
            steps: BTreeMap::new(),
            arriving: BTreeMap::new(),
            present: true,
            run_known: false,
            steps_known: false,
        }
    }

    /// What the watch of the run says; a fault where the run is gone, be it that another one has its name.
    pub fn see_run(&mut self, event: Event<Workflow>) -> Result<(), Fault> {
        let gone = match event {
            Event::Init => {
                self.present = false;
                false
            }
            Event::Apply(run) | Event::InitApply(run) => {
                let same = run.uid() == self.run.uid();
                self.present = true;
                if same {
                    self.run = run;
                }
                !same
            }
            Event::InitDone => {
                self.run_known = true;
                !self.present
            }
            Event::Delete(_) => true,
        };
        if gone {
            return Err(Fault::missing(format!(
                "the run {} was deleted while it was watched; nothing of it goes on",
                self.run.name_any()
            )));
        }
        Ok(())
    }

    fn see_step(&mut self, event: Event<StepRun>) {
        match event {
            Event::Init => self.arriving.clear(),
            Event::InitApply(step) => {
                self.arriving.insert(step.name_any(), step);
            }
            Event::InitDone => {
                self.steps = std::mem::take(&mut self.arriving);
                self.steps_known = true;
            }
            Event::Apply(step) => {
                self.steps.insert(step.name_any(), step);
            }
            Event::Delete(step) => {
                self.steps.remove(&step.name_any());
            }
        }
    }

    fn is_known(&self) -> bool {
        self.run_known && self.steps_known
    }

    fn end(&self, until: Until) -> Option<Code> {
        let phase = self.run.status.as_ref()?.phase?;
        let code = ended(phase, until)?;
        // Just after a decision the run's phase may be behind its steps: then nothing waits for people any more.
        let waits = phase == Phase::WaitingForDocuments || !wait::open(&self.run, &self.steps()).is_empty();
        (code != Code::Waiting || waits).then_some(code)
    }

    pub fn steps(&self) -> Vec<StepRun> {
        self.steps.values().cloned().collect()
    }
}

/// With what the watch ends, if it does.
fn ended(phase: Phase, until: Until) -> Option<Code> {
    match phase {
        Phase::Completed => Some(Code::Done),
        Phase::Failed | Phase::Cancelled => Some(Code::Failed),
        Phase::WaitingForAcceptance | Phase::WaitingForInput | Phase::WaitingForDocuments if until == Until::Wait => {
            Some(Code::Waiting)
        }
        _ => None,
    }
}

/// Shows the run until it ends.
pub async fn follow(on: &Connection, run: Workflow, until: Until) -> Result<Code, Fault> {
    let again = on.hint("watch", &run.name_any());
    let ended = Follower::open(on, run, Commands::of_plugin())?.until(|scene| scene.end(until)).await?;
    Ok(ended.unwrap_or_else(|| left(&again)))
}

/// Which commands stand below a wait: where the run is drawn in place, and where each change is a line.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    pub live: Ways,
    pub plain: Ways,
}

impl Commands {
    fn of_plugin() -> Self {
        Self { live: Ways::Asked, plain: Ways::Unasked }
    }
}

/// Somebody who looks at a run, and may look away.
pub struct Follower<'a> {
    on: &'a Connection,
    scene: Scene,
    shown: Shown,
    events: BoxStream<'static, RunEvent>,
    resized: Signal,
    interrupted: Signal,
    terminated: Signal,
    tick: Interval,
}

impl<'a> Follower<'a> {
    pub fn open(on: &'a Connection, run: Workflow, commands: Commands) -> Result<Self, Fault> {
        let events = run_events(on, &run.name_any());
        let taken = |kind| signal(kind).map_err(|wrong| Fault::new(Code::Api, format!("cannot take signals: {wrong}")));
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Ok(Self {
            on,
            scene: Scene::new(run),
            shown: Shown::new(commands),
            events,
            resized: taken(SignalKind::window_change())?,
            interrupted: taken(SignalKind::interrupt())?,
            terminated: taken(SignalKind::terminate())?,
            tick,
        })
    }

    /// Shows the run until this says something; none where the reader leaves before.
    pub async fn until<T>(&mut self, done: impl Fn(&Scene) -> Option<T>) -> Result<Option<T>, Fault> {
        loop {
            if self.scene.is_known() && done(&self.scene).is_some() {
                // Read once more: the two watches have no common order.
                let last = self.on.step_runs(&self.scene.run.name_any()).await?;
                self.scene.steps = last.into_iter().map(|s| (s.name_any(), s)).collect();
                if let Some(found) = done(&self.scene) {
                    self.shown.draw(&self.scene)?;
                    return Ok(Some(found));
                }
            }
            tokio::select! {
                one = self.events.next() => {
                    let Some(one) = one else {
                        return Err(Fault::new(Code::Api, "the watch ended; run the command again"));
                    };
                    take(&mut self.scene, &mut self.shown, one)?;
                }
                _ = self.tick.tick() => self.shown.show(&self.scene)?,
                _ = self.resized.recv() => self.shown.measure(),
                _ = self.interrupted.recv() => return Ok(None),
                _ = self.terminated.recv() => return Ok(None),
            }
        }
    }

    /// Something else is printed: what was drawn stays above it.
    pub fn pause(&mut self) {
        self.shown.rows = 0;
        self.shown.dirty = true;
    }
}

fn left(again: &str) -> Code {
    eprintln!("\nleft; the run goes on: {again}");
    Code::Interrupted
}

fn take(scene: &mut Scene, shown: &mut Shown, one: RunEvent) -> Result<(), Fault> {
    let wrong = match one {
        RunEvent::Run(run) => match *run {
            Ok(event) => {
                shown.hear();
                return scene.see_run(event);
            }
            Err(wrong) => wrong,
        },
        RunEvent::Step(step) => match *step {
            Ok(event) => {
                shown.hear();
                scene.see_step(event);
                return Ok(());
            }
            Err(wrong) => wrong,
        },
    };
    if let Some(fault) = watch_fault("watch the run", &wrong) {
        return Err(fault);
    }
    shown.lose(&wrong.to_string());
    Ok(())
}

/// Faults that trying again does not mend.
pub fn watch_fault(what: &str, wrong: &watcher::Error) -> Option<Fault> {
    let status = match wrong {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        watcher::Error::InitialListFailed(wrong @ kube::Error::SerdeError(_)) => {
            return Some(Fault::call(what, wrong));
        }
        _ => return None,
    };
    matches!(status.code, 401 | 403 | 404).then(|| Fault::refused(what, status))
}

/// What the reader sees by now.
struct Shown {
    view: View,
    ways: Commands,
    live: bool,
    rows: usize,
    dirty: bool,
    drawn_at: i64,
    lost: Option<String>,
    /// What was said where nothing can be drawn again: of each step and of the run, and of which waits.
    lines: BTreeMap<String, String>,
    waits: BTreeSet<String>,
}

impl Shown {
    fn new(ways: Commands) -> Self {
        let live = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let mut shown = Self {
            view: View::default(),
            ways,
            live,
            rows: 0,
            dirty: true,
            drawn_at: 0,
            lost: None,
            lines: BTreeMap::new(),
            waits: BTreeSet::new(),
        };
        shown.measure();
        shown
    }

    fn measure(&mut self) {
        if self.live {
            let (height, width) = text::window();
            self.view = View { width: Some(width), height: Some(height), colours: text::colours() };
            self.dirty = true;
        }
    }

    fn hear(&mut self) {
        self.dirty = true;
        self.lost = None;
    }

    fn lose(&mut self, why: &str) {
        let why = text::inline(why, 200);
        if !self.live && self.lost.is_none() {
            eprintln!("{}  connection lost, trying again: {why}", clock(Timestamp::now()));
        }
        self.lost = Some(why);
        self.dirty = true;
    }

    /// Draws if there is something new. Between changes only the clocks move, once a second.
    fn show(&mut self, scene: &Scene) -> Result<(), Fault> {
        let ticked = self.live && self.drawn_at != Timestamp::now().as_second();
        if self.dirty || ticked { self.draw(scene) } else { Ok(()) }
    }

    fn draw(&mut self, scene: &Scene) -> Result<(), Fault> {
        let now = Timestamp::now();
        let known = scene.is_known();
        if !known && self.lost.is_none() {
            return Ok(());
        }
        self.dirty = false;
        self.drawn_at = now.as_second();
        if self.live {
            return self.redraw(scene, now);
        }
        if known {
            let steps = scene.steps();
            for line in changes(&mut self.lines, &scene.run, &steps) {
                put(&format!("{}  {line}\n", clock(now)))?;
            }
            for wait in opened(&mut self.waits, &scene.run, &steps, self.ways.plain) {
                put(&wait)?;
            }
        }
        Ok(())
    }

    fn redraw(&mut self, scene: &Scene, now: Timestamp) -> Result<(), Fault> {
        let mut drawn = tree::draw(&scene.run, &scene.steps(), now, (self.view, self.ways.live));
        if let Some(why) = &self.lost {
            let line = format!("connection lost, trying again: {why}");
            drawn.lines.push(text::cut(&line, self.view.width.unwrap_or(80)));
            drawn.rows += 1;
        }
        let up = match self.rows {
            0 => String::new(),
            rows => format!("\x1b[{rows}A"),
        };
        self.rows = drawn.rows;
        put(&format!("{up}\r\x1b[J{}\n", drawn.lines.join("\n")))
    }
}

/// The waits that have opened since this was asked before, each with the commands that end it.
pub fn opened(known: &mut BTreeSet<String>, run: &Workflow, steps: &[StepRun], ways: Ways) -> Vec<String> {
    let open = wait::open(run, steps);
    let id = |step: &StepRun| {
        let status = step.status.as_ref();
        let gate = status.and_then(|s| s.gate.as_ref()).map_or("", |gate| gate.output_digest.as_str());
        let wait = status.and_then(|s| s.waiting_for.as_ref()).map_or("", |wait| wait.id.as_str());
        format!("{} {gate} {wait}", step.name_any())
    };
    let now: BTreeSet<String> = open.iter().map(|step| id(step)).collect();
    let fresh = open.iter().filter(|step| !known.contains(&id(step)));
    let told = fresh.map(|step| wait::text(step, ways, RenderOptions::default())).collect();
    *known = now;
    told
}

/// One line for all that is different from what was said before.
pub fn changes(said: &mut BTreeMap<String, String>, run: &Workflow, steps: &[StepRun]) -> Vec<String> {
    let mut now: Vec<(String, String)> = rows(run, steps)
        .into_iter()
        .map(|row| {
            let line = format!("{}  {}  {}", row.label, row.phase, row.told());
            (row.label, line.trim_end().to_owned())
        })
        .collect();
    let status = run.status.clone().unwrap_or_default();
    let is_over = status.phase.is_some_and(Phase::is_terminal);
    let summary = status.waiting.filter(|_| !is_over).unwrap_or_default().summary;
    let mut line = format!("{}  {}", run.name_any(), status.phase.unwrap_or_default());
    if !summary.is_empty() {
        write!(line, "  waits for {}", text::inline(&summary, 64)).ok();
    }
    if let Some(why) = held::beside(run, steps) {
        write!(line, "  {why}").ok();
    } else if !is_over && held::run(run).is_none() && !status.pending_documents.is_empty() {
        write!(line, "  waits for {}", text::inline(&tree::documents(&status.pending_documents), 400)).ok();
    }
    if status.phase.is_some_and(|phase| phase != Phase::Completed && phase.is_terminal())
        && let Some(why) = tree::ending(run)
    {
        write!(line, "  {}", text::inline(&why, 400)).ok();
    }
    // No step has an empty label.
    let run_entry = (String::new(), line);
    if is_over {
        now.push(run_entry);
    } else {
        now.insert(0, run_entry);
    }
    now.retain(|(key, line)| said.get(key) != Some(line));
    said.extend(now.iter().cloned());
    now.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_runs() {
        let table = [
            (Phase::Completed, Until::End, Some(Code::Done)),
            (Phase::Failed, Until::End, Some(Code::Failed)),
            (Phase::Cancelled, Until::Wait, Some(Code::Failed)),
            (Phase::WaitingForAcceptance, Until::Wait, Some(Code::Waiting)),
            (Phase::WaitingForInput, Until::Wait, Some(Code::Waiting)),
            (Phase::WaitingForDocuments, Until::Wait, Some(Code::Waiting)),
            (Phase::WaitingForAcceptance, Until::End, None),
            (Phase::Running, Until::Wait, None),
            (Phase::Pending, Until::End, None),
        ];
        for (phase, until, expected) in table {
            assert_eq!(ended(phase, until), expected, "{phase} {until:?}");
        }
    }

    #[test]
    fn only_changes_are_said() {
        let (run, mut steps) = crate::cli::tree::sample::shop();
        let mut said = BTreeMap::new();
        let first = changes(&mut said, &run, &steps);
        assert_eq!(first.first().map(String::as_str), Some("shop  Running  waits for 1 gate"));
        assert_eq!(changes(&mut said, &run, &steps), Vec::<String>::new());
        let progress = |s: &mut StepRun| s.status.as_mut()?.agent.as_mut()?.progress.take();
        assert!(steps.iter_mut().find_map(progress).is_some());
        assert_eq!(changes(&mut said, &run, &steps), ["architecture/E2  Running  attempt 2"]);
    }

    #[test]
    fn a_wait_is_said_once_with_the_commands_that_end_it() {
        let (run, mut steps) = crate::cli::tree::sample::shop();
        let mut known = BTreeSet::new();
        let told = opened(&mut known, &run, &steps, Ways::Unasked);
        assert!(
            matches!(told.as_slice(), [one] if one.contains("    kubectl lockstep -n team-a approve shop/backlog --review sha256:00ff\n")),
            "{told:?}"
        );
        assert_eq!(opened(&mut known, &run, &steps, Ways::Unasked), Vec::<String>::new());
        // The next round is another wait.
        let gate = |s: &mut StepRun| -> Option<()> {
            let gate =
                s.status.as_mut()?.gate.as_mut().filter(|g| g.state == crate::api::step_run::GateState::Waiting)?;
            gate.output_digest = "sha256:11ff".to_owned();
            Some(())
        };
        assert!(steps.iter_mut().find_map(gate).is_some());
        assert_eq!(opened(&mut known, &run, &steps, Ways::Unasked).len(), 1);
    }
}
