//! `watch`: a run live, driven by watches. On a terminal it is drawn in place, elsewhere each change is a line.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::{Connection, steps_of};
use super::fault::{Code, Fault};
use super::line::View;
use super::print::put;
use super::rows::rows;
use super::target::Target;
use super::text::{self, clock, quote};
use super::{tree, wait};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// Watch a run until it ends
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The exit code is the run's: 0 completed, 1 failed or cancelled, 3 waits for people (with --until-wait), 4 gone.

Examples:
  kubectl lockstep watch shop
  kubectl lockstep watch shop --until-wait; test $? = 3 && notify 'the run waits'")]
pub struct Args {
    /// The run
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

enum Seen {
    Run(Box<watcher::Result<Event<Workflow>>>),
    Step(Box<watcher::Result<Event<StepRun>>>),
}

/// What is known of the run by now.
struct Scene {
    run: Workflow,
    steps: BTreeMap<String, StepRun>,
    /// Steps of a list that is not complete yet.
    arriving: BTreeMap<String, StepRun>,
    present: bool,
    run_known: bool,
    steps_known: bool,
}

impl Scene {
    fn new(run: Workflow) -> Self {
        Self {
            run,
            steps: BTreeMap::new(),
            arriving: BTreeMap::new(),
            present: true,
            run_known: false,
            steps_known: false,
        }
    }

    fn see_run(&mut self, event: Event<Workflow>) -> Result<(), Fault> {
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

    fn end(&self, until: Until) -> Option<Code> {
        if !(self.run_known && self.steps_known) {
            return None;
        }
        let phase = self.run.status.as_ref()?.phase?;
        let code = ended(phase, until)?;
        // Just after a decision the run's phase may be behind its steps: then nothing waits for people any more.
        let waits = phase == Phase::WaitingForDocuments || !wait::open(&self.run, &self.steps()).is_empty();
        (code != Code::Waiting || waits).then_some(code)
    }

    fn steps(&self) -> Vec<StepRun> {
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
    let name = run.name_any();
    let mut scene = Scene::new(run);
    let mut shown = Shown::new();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let runs = watcher(on.api::<Workflow>(), fields).default_backoff();
    let fields = watcher::Config::default().fields(&steps_of(&name));
    let steps = watcher(on.api::<StepRun>(), fields).default_backoff();
    let mut seen = stream::select(
        runs.map(|run| Seen::Run(Box::new(run))).boxed(),
        steps.map(|step| Seen::Step(Box::new(step))).boxed(),
    );
    let unsure = |wrong| Fault::new(Code::Api, format!("cannot take signals: {wrong}"));
    let mut resized = signal(SignalKind::window_change()).map_err(unsure)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(unsure)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(unsure)?;
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            one = seen.next() => {
                let Some(one) = one else {
                    return Err(Fault::new(Code::Api, "the watch ended; run the command again"));
                };
                take(&mut scene, &mut shown, one)?;
                // The list that ends a run is read once more: the two watches have no common order.
                if let Some(code) = scene.end(until) {
                    let last = on.step_runs(&name).await?;
                    scene.steps = last.into_iter().map(|s| (s.name_any(), s)).collect();
                    shown.draw(&scene)?;
                    shown.close(&scene, code)?;
                    return Ok(code);
                }
            }
            _ = tick.tick() => shown.show(&scene)?,
            _ = resized.recv() => shown.measure(),
            _ = interrupted.recv() => return Ok(left(&on.hint("watch", &name))),
            _ = terminated.recv() => return Ok(left(&on.hint("watch", &name))),
        }
    }
}

fn left(again: &str) -> Code {
    eprintln!("\nleft; the run goes on: {again}");
    Code::Interrupted
}

fn take(scene: &mut Scene, shown: &mut Shown, one: Seen) -> Result<(), Fault> {
    let wrong = match one {
        Seen::Run(run) => match *run {
            Ok(event) => {
                shown.hear();
                return scene.see_run(event);
            }
            Err(wrong) => wrong,
        },
        Seen::Step(step) => match *step {
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
    live: bool,
    rows: usize,
    dirty: bool,
    drawn_at: i64,
    lost: Option<String>,
    lines: BTreeMap<String, String>,
}

impl Shown {
    fn new() -> Self {
        let live = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let mut shown =
            Self { view: View::default(), live, rows: 0, dirty: true, drawn_at: 0, lost: None, lines: BTreeMap::new() };
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
        let known = scene.run_known && scene.steps_known;
        if !known && self.lost.is_none() {
            return Ok(());
        }
        self.dirty = false;
        self.drawn_at = now.as_second();
        if self.live {
            return self.redraw(scene, now);
        }
        if known {
            for line in changes(&mut self.lines, &scene.run, &scene.steps()) {
                put(&format!("{}  {line}\n", clock(now)))?;
            }
        }
        Ok(())
    }

    fn redraw(&mut self, scene: &Scene, now: Timestamp) -> Result<(), Fault> {
        let mut drawn = tree::draw(&scene.run, &scene.steps(), now, self.view);
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

    /// The last word where lines were printed: what waits, with the commands.
    fn close(&self, scene: &Scene, code: Code) -> Result<(), Fault> {
        if self.live || code != Code::Waiting {
            return Ok(());
        }
        let steps = scene.steps();
        wait::open(&scene.run, &steps).into_iter().try_for_each(|step| put(&wait::text(step, self.view)))
    }
}

/// One line for all that is different from what was said before.
fn changes(said: &mut BTreeMap<String, String>, run: &Workflow, steps: &[StepRun]) -> Vec<String> {
    let mut now: Vec<(String, String)> = rows(run, steps)
        .into_iter()
        .map(|row| {
            let line = format!("{}  {}  {}", row.label, row.phase, row.detail);
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
    if !status.pending_documents.is_empty() {
        write!(line, "  lacks {}", text::inline(&status.pending_documents.join(", "), 400)).ok();
    }
    if let Some(why) = crate::api::condition::get(&status.conditions, "Succeeded")
        && status.phase.is_some_and(|phase| phase != Phase::Completed && phase.is_terminal())
    {
        write!(line, "  {}: {}", why.reason, text::inline(&why.message, 400)).ok();
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
}
