//! Logs of pods, line by line. One that is followed is taken up again where it broke off: each line comes with its time, and
//! what was told is not told twice.

#![expect(clippy::disallowed_methods, reason = "the pause before a log is asked for again")]

use std::cmp::Ordering;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use futures::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, LogParams};
use tokio::sync::mpsc;

use super::{LogOutput, LogUnavailable, Source, instead};
use crate::api::name::{LABEL_ATTEMPT, LABEL_STEP_RUN};
use crate::definition::agent::CONTAINER;

/// Bytes of one line, its time included; a longer one goes on in the next.
const LINE_BYTES: u64 = 64 * 1024;
/// Before a log that broke off is asked for again, and at most.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Streams in a row that brought no line, before it is given up: ten minutes.
const TRIES: u32 = 45;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Once,
    Follow,
}

/// Reads logs, for as long as there are some.
#[derive(Clone)]
pub struct Pods {
    pub api: Api<Pod>,
    pub run: String,
    pub tail: Option<i64>,
}

type LogReader = Pin<Box<dyn AsyncBufRead + Send>>;
type Opened = Result<Result<LogReader, LogUnavailable>, kube::Error>;

impl Pods {
    pub fn read(self, source: Source, mode: Mode) -> BoxStream<'static, LogOutput> {
        match mode {
            Mode::Once => self.once(source),
            Mode::Follow => followed((self, source)),
        }
    }

    fn once(self, source: Source) -> BoxStream<'static, LogOutput> {
        let label = source.label.clone();
        let opened = async move {
            match self.open(&source, &params(self.tail)).await {
                Ok(Ok(reader)) => lines(label, reader),
                Ok(Err(why)) => stream::iter(instead(&self.run, &source, &why, self.tail)).boxed(),
                Err(wrong) => {
                    let word = format!("{}/{label}: the log cannot be read: {wrong}", self.run);
                    stream::iter([LogOutput::Note(word)]).boxed()
                }
            }
        };
        stream::once(opened).flatten().boxed()
    }

    async fn open(&self, source: &Source, params: &LogParams) -> Opened {
        let found = match self.pod(source).await {
            Ok(found) => found,
            Err(wrong) => return refused(wrong).map(Err),
        };
        let Some(pod) = found else { return Ok(Err(LogUnavailable::Gone)) };
        match self.api.log_stream(&pod, params).await {
            Ok(reader) => Ok(Ok(Box::pin(reader))),
            Err(wrong) => refused(wrong).map(Err),
        }
    }

    /// The pod of an attempt: the one that has it, else the newest that was made for it.
    async fn pod(&self, source: &Source) -> Result<Option<String>, kube::Error> {
        if let Some(pod) = &source.pod {
            return Ok(Some(pod.clone()));
        }
        let labels = format!("{LABEL_STEP_RUN}={},{LABEL_ATTEMPT}={}", source.step_run, source.attempt);
        let mut pods = self.api.list_metadata(&ListParams::default().labels(&labels)).await?.items;
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0));
        Ok(pods.pop().and_then(|pod| pod.metadata.name))
    }
}

fn params(tail: Option<i64>) -> LogParams {
    LogParams { container: Some(CONTAINER.to_owned()), tail_lines: tail, ..LogParams::default() }
}

/// Where a log can be had again and again.
trait Logs: Send + Sync + 'static {
    /// From that time on, to the second; or as it was asked for.
    fn open(&self, since: Option<Timestamp>) -> impl Future<Output = Opened> + Send;
    /// Whether more may come, as far as that can be known.
    fn goes_on(&self) -> impl Future<Output = bool> + Send;
    fn label(&self) -> &str;
    /// What is said where there is no log.
    fn instead(&self, why: &LogUnavailable) -> Vec<LogOutput>;
}

impl Logs for (Pods, Source) {
    async fn open(&self, since: Option<Timestamp>) -> Opened {
        let (pods, source) = self;
        let tail = pods.tail.filter(|_| since.is_none());
        let params = LogParams { follow: true, timestamps: true, since_time: since, ..params(tail) };
        pods.open(source, &params).await
    }

    async fn goes_on(&self) -> bool {
        let (pods, source) = self;
        let found = match pods.pod(source).await {
            Ok(Some(name)) => pods.api.get_opt(&name).await,
            Ok(None) => Ok(None),
            Err(wrong) => Err(wrong),
        };
        match found {
            Ok(Some(pod)) => is_to_run(&pod),
            Ok(None) => false,
            // Nobody could say, unless the caller may not know.
            Err(wrong) => !matches!(wrong, kube::Error::Api(status) if status.code == 403),
        }
    }

    fn label(&self) -> &str {
        &self.1.label
    }

    fn instead(&self, why: &LogUnavailable) -> Vec<LogOutput> {
        instead(&self.0.run, &self.1, why, self.0.tail)
    }
}

/// Whether its container has not ended. It may have claimed before its node told anybody that it runs.
fn is_to_run(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let mut statuses = status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let state = statuses.find(|container| container.name == CONTAINER).and_then(|own| own.state.as_ref());
    !matches!(phase, Some("Succeeded" | "Failed")) && state.is_none_or(|state| state.terminated.is_none())
}

/// A log to its end, over as many streams as that takes.
fn followed(logs: impl Logs) -> BoxStream<'static, LogOutput> {
    // Whoever does not listen any more ends it with the next line.
    let (to, mut said) = mpsc::channel(1);
    tokio::spawn(tell(logs, to));
    stream::poll_fn(move |context| said.poll_recv(context)).boxed()
}

/// Ends with nothing where nobody listens.
async fn tell(logs: impl Logs, to: mpsc::Sender<LogOutput>) -> Option<()> {
    let mut position = LogPosition::default();
    let (mut was_open, mut in_vain) = (false, 0);
    loop {
        let why = match logs.open(position.since()).await {
            Ok(Ok(mut reader)) => {
                was_open = true;
                let before = position.lines;
                let (rest, wrong) = stream_to_end(&mut reader, &mut position, (logs.label(), &to)).await?;
                if position.lines > before {
                    in_vain = 0;
                }
                // The end of a stream is not yet that of the log.
                if wrong.is_none() && !logs.goes_on().await {
                    if let Some(line) = position.take(&rest) {
                        to.send(LogOutput::Line(logs.label().to_owned(), line)).await.ok()?;
                    }
                    return Some(());
                }
                wrong
            }
            Ok(Err(why)) if was_open => {
                let why = if why == LogUnavailable::Gone { "its pod is gone" } else { "it cannot be read any more" };
                return to.send(LogOutput::Note(format!("{}: the log broke off: {why}", logs.label()))).await.ok();
            }
            Ok(Err(LogUnavailable::Waiting)) if in_vain < TRIES && logs.goes_on().await => None,
            Ok(Err(why)) => {
                for said in logs.instead(&why) {
                    to.send(said).await.ok()?;
                }
                return Some(());
            }
            Err(wrong) => Some(wrong.to_string()),
        };
        in_vain += 1;
        let label = logs.label();
        if in_vain > TRIES {
            let why = why.unwrap_or_else(|| "nothing comes".to_owned());
            let word = format!("{label}: the log broke off ({why}); run the command again");
            return to.send(LogOutput::Note(word)).await.ok();
        }
        if let Some(why) = why.filter(|_| in_vain == 1) {
            let word = format!("{label}: the log broke off ({why}); it goes on when it can be read again");
            to.send(LogOutput::Note(word)).await.ok()?;
        }
        tokio::time::sleep(LONGEST_PAUSE.min(PAUSE * 2u32.pow(in_vain.min(6) - 1))).await;
    }
}

/// Sends what is new of one stream. Gives what it ended with in the middle of a line, and the reason where it broke off.
async fn stream_to_end(
    reader: &mut LogReader,
    position: &mut LogPosition,
    (label, to): (&str, &mpsc::Sender<LogOutput>),
) -> Option<(Vec<u8>, Option<String>)> {
    position.begins();
    loop {
        match piece(reader).await {
            // Whether that is the whole line, the next stream shows.
            Ok(Some(bytes)) if !bytes.ends_with(b"\n") && (bytes.len() as u64) < LINE_BYTES => {
                let end = piece(reader).await;
                return Some((bytes, end.err().map(|wrong| wrong.to_string())));
            }
            Ok(Some(bytes)) => {
                if let Some(line) = position.take(&bytes) {
                    to.send(LogOutput::Line(label.to_owned(), line)).await.ok()?;
                }
            }
            Ok(None) => return Some((Vec::new(), None)),
            Err(wrong) => return Some((Vec::new(), Some(wrong.to_string()))),
        }
    }
}

/// How far a log was printed. Each line comes with its time, and a log can be read from a second on: so that nothing is
/// printed twice, the pieces of that second are counted.
#[derive(Debug, Default)]
struct LogPosition {
    /// The latest second of which something was printed.
    second: Option<i64>,
    pieces: usize,
    lines: u64,
    /// Where the stream is: in which second, whether the next piece goes on with a line, and how many pieces are still to come
    /// that were printed before.
    at: Option<i64>,
    goes_on: bool,
    known: usize,
}

impl LogPosition {
    fn since(&self) -> Option<Timestamp> {
        self.second.and_then(|second| Timestamp::from_second(second).ok())
    }

    /// A new stream begins, with the pieces of the latest second that were printed before.
    fn begins(&mut self) {
        (self.at, self.goes_on, self.known) = (self.second, false, self.pieces);
    }

    /// The text of a piece without its time, if it was not printed before.
    fn take(&mut self, bytes: &[u8]) -> Option<String> {
        if bytes.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let stamped = if self.goes_on { None } else { stamped(line) };
        self.goes_on = !bytes.ends_with(b"\n");
        let line = match stamped {
            Some((stamp, line)) => {
                self.at = Some(stamp.as_second());
                line
            }
            None => line,
        };
        if self.known > 0 {
            self.known -= 1;
            return None;
        }
        match self.at.cmp(&self.second) {
            Ordering::Greater => (self.second, self.pieces) = (self.at, 1),
            Ordering::Equal => self.pieces += 1,
            // Out of order: a stream from that second on does not have it.
            Ordering::Less => {}
        }
        self.lines += 1;
        Some(line.to_owned())
    }
}

/// `2026-01-01T00:00:00.123456789Z the line`, taken apart.
fn stamped(line: &str) -> Option<(Timestamp, &str)> {
    let (stamp, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some((stamp.parse().ok()?, rest))
}

/// A line, or the next part of one that is too long.
async fn piece(reader: &mut LogReader) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = reader.take(LINE_BYTES).read_until(b'\n', &mut bytes).await?;
    Ok((read > 0).then_some(bytes))
}

/// What a refusal of the API server means for a log; any other trouble stays one.
fn refused(wrong: kube::Error) -> Result<LogUnavailable, kube::Error> {
    match &wrong {
        kube::Error::Api(status) if status.code == 404 => Ok(LogUnavailable::Gone),
        kube::Error::Api(status) if status.code == 403 => Ok(LogUnavailable::Forbidden(status.message.clone())),
        // "container is waiting to start", and of a node that is gone.
        kube::Error::Api(status) if status.code == 400 => Ok(LogUnavailable::Waiting),
        _ => Err(wrong),
    }
}

/// Line by line, whatever bytes they are.
fn lines(label: String, reader: LogReader) -> BoxStream<'static, LogOutput> {
    let next = |state: Option<(String, LogReader)>| async move {
        let (label, mut reader) = state?;
        match piece(&mut reader).await {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                let text = String::from_utf8_lossy(&bytes);
                let line = text.strip_suffix('\n').unwrap_or(&text).to_owned();
                Some((LogOutput::Line(label.clone(), line), Some((label, reader))))
            }
            Err(wrong) => {
                Some((LogOutput::Note(format!("{label}: the log broke off ({wrong}); run the command again")), None))
            }
        }
    };
    stream::unfold(Some((label, reader)), next).boxed()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Error, ErrorKind};
    use std::sync::Mutex;

    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_log_is_read_line_by_line_whatever_it_holds() {
        let long = "x".repeat(usize::try_from(LINE_BYTES).expect("a length") + 5);
        let text = format!("one\n\n\u{e4}\n{long}\nlast");
        let mut bytes = text.into_bytes();
        bytes.extend([0xff, b'\n']);
        let reader: LogReader = Box::pin(futures::io::Cursor::new(bytes));
        let texts: Vec<String> = lines("plan".to_owned(), reader)
            .map(|said| if let LogOutput::Line(_, line) = said { line } else { panic!("{said:?}") })
            .collect()
            .await;
        assert_eq!(texts.len(), 6, "{texts:?}");
        assert_eq!((&texts[0][..], &texts[1][..], &texts[2][..], &texts[5][..]), ("one", "", "\u{e4}", "last\u{fffd}"));
        assert_eq!(texts[3].len() + texts[4].len(), long.len());
    }

    #[test]
    fn refusals_are_told_apart() {
        let refusal = |code: u16| {
            let status = kube::core::Status { code, message: "no".to_owned(), ..Default::default() };
            refused(kube::Error::Api(Box::new(status))).ok()
        };
        assert_eq!(refusal(404), Some(LogUnavailable::Gone));
        assert_eq!(refusal(403), Some(LogUnavailable::Forbidden("no".to_owned())));
        assert_eq!(refusal(400), Some(LogUnavailable::Waiting));
        assert_eq!(refusal(500), None);
    }

    /// What becomes of one stream.
    enum End {
        Whole,
        Broken,
        Refused,
        Waiting,
        Gone,
    }

    /// A log whose streams end so, after so many bytes each.
    struct Flaky {
        log: Vec<(Timestamp, String)>,
        streams: Mutex<VecDeque<(usize, End)>>,
        asked: Mutex<usize>,
    }

    impl Logs for &'static Flaky {
        async fn open(&self, since: Option<Timestamp>) -> Opened {
            *self.asked.lock().expect("nobody panics") += 1;
            let (most, end) = self.streams.lock().expect("nobody panics").pop_front().expect("one stream more");
            let meant = self.log.iter().filter(|(at, _)| since.is_none_or(|since| *at >= since));
            let lines: Vec<String> = meant.map(|(at, line)| format!("{at:.9} {line}")).collect();
            // The last line has no end.
            let text = lines.join("\n");
            let cut = text.as_bytes()[..most.min(text.len())].to_vec();
            let rest = match end {
                End::Whole => None,
                End::Broken => Some(Err(Error::new(ErrorKind::ConnectionReset, "reset"))),
                End::Refused => return Err(kube::Error::LinesCodecMaxLineLengthExceeded),
                End::Waiting => return Ok(Err(LogUnavailable::Waiting)),
                End::Gone => return Ok(Err(LogUnavailable::Gone)),
            };
            let chunks = stream::iter(std::iter::once(Ok(cut)).chain(rest));
            Ok(Ok(Box::pin(chunks.into_async_read())))
        }

        async fn goes_on(&self) -> bool {
            !self.streams.lock().expect("nobody panics").is_empty()
        }

        fn label(&self) -> &'static str {
            "plan"
        }

        fn instead(&self, why: &LogUnavailable) -> Vec<LogOutput> {
            vec![LogOutput::Note(format!("{why:?}"))]
        }
    }

    /// Lines and words, and how often it was asked for.
    async fn printed(log: &[(Timestamp, String)], streams: Vec<(usize, End)>) -> (Vec<String>, Vec<String>, usize) {
        let (log, streams) = (log.to_vec(), Mutex::new(streams.into()));
        let flaky: &'static Flaky = Box::leak(Box::new(Flaky { log, streams, asked: Mutex::default() }));
        let (mut lines, mut words) = (Vec::new(), Vec::new());
        let mut said = followed(flaky);
        while let Some(said) = said.next().await {
            match said {
                LogOutput::Line(_, line) => lines.push(line),
                LogOutput::Note(word) => words.push(word),
            }
        }
        let asked = *flaky.asked.lock().expect("nobody panics");
        (lines, words, asked)
    }

    /// Cut anywhere: within a line, within its time, among lines of the same time, in the middle of a long one.
    #[tokio::test(start_paused = true)]
    async fn a_log_that_breaks_off_is_taken_up_again_without_a_line_twice_or_lost() {
        let at = |millis: i64| Timestamp::from_millisecond(1_767_225_600_000 + millis).expect("a time");
        let wide = "y".repeat(usize::try_from(LINE_BYTES).expect("a length") * 2);
        let log = [
            (0, "one"),
            (10, "same"),
            (10, "same"),
            (5, "late"),
            (900, ""),
            (1100, "2026-01-01T00:00:00Z is what it says"),
            (1200, &wide),
            (1900, "after"),
            (2500, "end"),
        ]
        .map(|(millis, text)| (at(millis), text.to_owned()));
        let (whole, words, asked) = printed(&log, vec![(usize::MAX, End::Whole)]).await;
        assert_eq!((words.len(), asked), (0, 1));
        assert_eq!(whole.concat(), log.iter().map(|(_, line)| line.as_str()).collect::<String>());
        for cut in (0..280).chain([60_000, 65_530, 65_536, 66_000, 131_000, 131_330, 131_400]) {
            let streams = vec![(cut, End::Broken), (0, End::Refused), (cut / 2, End::Whole), (usize::MAX, End::Whole)];
            let (lines, words, asked) = printed(&log, streams).await;
            assert!(lines == whole && asked == 4, "cut at {cut}: {} lines, {words:?}", lines.len());
        }
    }

    /// The shim claims before the node has told anybody that its container runs.
    #[tokio::test(start_paused = true)]
    async fn a_container_that_is_about_to_start_is_waited_for() {
        let log = [(Timestamp::UNIX_EPOCH, "one".to_owned())];
        let starts = vec![(0, End::Waiting), (0, End::Waiting), (usize::MAX, End::Whole)];
        assert_eq!(printed(&log, starts).await, (vec!["one".to_owned()], Vec::new(), 3));
        let ended = vec![(0, End::Waiting)];
        assert_eq!(printed(&log, ended).await, (Vec::new(), vec!["Waiting".to_owned()], 1));
        let never = (0..=TRIES).map(|_| (0, End::Waiting)).chain([(0, End::Whole)]).collect();
        assert_eq!(printed(&log, never).await, (Vec::new(), vec!["Waiting".to_owned()], 46));
    }

    #[test]
    fn a_container_goes_on_until_it_has_ended() {
        for (status, expected) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"phase": "Pending"}), true),
            (serde_json::json!({"phase": "Failed", "reason": "Evicted"}), false),
            (
                serde_json::json!({"phase": "Pending", "containerStatuses": [{"name": "agent", "state": {"waiting": {}}}]}),
                true,
            ),
            (
                serde_json::json!({"phase": "Running", "containerStatuses": [{"name": "agent", "state": {"running": {}}}]}),
                true,
            ),
            (
                serde_json::json!({"phase": "Running", "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 0}}}]}),
                false,
            ),
        ] {
            let statuses = status.get("containerStatuses").cloned();
            let mut whole = status.clone();
            if let Some(mut statuses) = statuses {
                for field in ["image", "imageID"] {
                    statuses[0][field] = "i".into();
                }
                statuses[0]["ready"] = true.into();
                statuses[0]["restartCount"] = 0.into();
                whole["containerStatuses"] = statuses;
            }
            let pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": whole}));
            assert_eq!(is_to_run(&pod.expect("a pod")), expected, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_gone_says_so_and_one_that_never_comes_is_given_up() {
        let log = [(Timestamp::UNIX_EPOCH, "one".to_owned()), (Timestamp::UNIX_EPOCH, "two".to_owned())];
        let (lines, words, _) = printed(&log, vec![(usize::MAX, End::Broken), (0, End::Gone)]).await;
        let gone = "plan: the log broke off: its pod is gone";
        assert_eq!((lines, words.last().map(String::as_str)), (vec!["one".to_owned()], Some(gone)));
        let (lines, words, _) = printed(&log, vec![(0, End::Gone)]).await;
        assert_eq!((lines.len(), words), (0, vec!["Gone".to_owned()]));
        let (lines, words, asked) = printed(&log, (0..=TRIES).map(|_| (0, End::Refused)).collect()).await;
        assert_eq!((lines.len(), words.len(), asked), (0, 2, 46));
        assert!(words[1].ends_with("run the command again"), "{words:?}");
    }
}
