//! `lint`: what the API server and the operator would say of files, without a cluster: their own schemas and checks.

mod check;
mod sarif;
mod structure;
mod warn;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::fault::{Code, Fault};
use super::file::read;
use super::line::RenderOptions;
use super::print::{self, Format, put};
use super::text::{Style, inline};
use super::yaml::{self, Page};
use check::{ObjectFindings, Templates};

/// Check templates, runs and agents in files, without a cluster
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The messages are those of the objects' conditions. Parameters of a run are checked where its template is among the
files. Objects of other kinds are ignored. Warnings leave the exit code as it is.

A folder stands for its files that end in yaml, yml or json, as for kubectl apply -f; with -R also for those in its folders.
Names that begin with a dot are left out: they hold settings of tools.

Exit codes: 0 clean, 1 faults, 2 wrong usage or a file that cannot be read.

Examples:
  kubectl lockstep lint flow.yaml
  kubectl lockstep lint workflows/
  kubectl lockstep lint agents.yaml flow.yaml run.yaml
  kustomize build . | kubectl lockstep lint - -o json
  kubectl lockstep lint -R . -o sarif > lint.sarif")]
pub struct Args {
    /// YAML or JSON files, or folders of them; - is standard input
    #[arg(required = true, value_name = "FILE|FOLDER")]
    files: Vec<PathBuf>,
    /// Go into the folders of a folder, too
    #[arg(short = 'R', long)]
    recursive: bool,
}

#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warning,
    Note,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Error => Style::Bad,
            Self::Warning => Style::Wait,
            Self::Note => Style::Dim,
        }
    }
}

/// One finding and its place.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    /// Kind and name.
    object: String,
    path: String,
    message: String,
}

impl Finding {
    /// The place first, as editors read it: never folded.
    fn text(&self, options: RenderOptions) -> String {
        let line = self.line.map_or_else(String::new, |line| format!("{line}:"));
        let object = if self.object.is_empty() { String::new() } else { format!("{}: ", self.object) };
        let level = options.paint(self.level.style(), self.level.word());
        format!("{}:{line} {level}: {object}{}\n", self.file, inline(&self.message, 2048))
    }
}

fn text(format: Format, report: &Report, options: RenderOptions) -> Result<String, Fault> {
    if format.is_text() {
        return Ok(report.findings.iter().map(|finding| finding.text(options)).collect());
    }
    if format == Format::Sarif {
        return print::plain_text(format, &sarif::log(report));
    }
    let value = serde_json::to_value(report);
    let value = value.map_err(|wrong| Fault::new(Code::Api, format!("cannot print the report: {wrong}")))?;
    print::plain_text(format, &value)
}

#[derive(Serialize, Debug, Default)]
struct Report {
    objects: usize,
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

/// The path in front of a message.
fn path(message: &str) -> &str {
    message.split_once(": ").map_or("", |(path, _)| path)
}

pub fn run(format: Format, args: &Args) -> Result<Code, Fault> {
    let texts = texts(&args.files, if args.recursive { Depth::All } else { Depth::One })?;
    if texts.is_empty() {
        return Err(Fault::usage(
            "there is no file that ends in yaml, yml or json; with -R folders are gone into, too",
        ));
    }
    let report = report(&texts);
    put(&text(format, &report, RenderOptions::for_stdout())?)?;
    if format.is_text() {
        eprintln!("objects: {}, errors: {}, warnings: {}", report.objects, report.errors, report.warnings);
    }
    Ok(if report.errors > 0 { Code::Failed } else { Code::Done })
}

/// The files, and what stands in them.
pub fn texts(paths: &[PathBuf], depth: Depth) -> Result<Vec<(String, String)>, Fault> {
    let mut texts = Vec::new();
    for path in paths {
        for file in files(path, depth)? {
            texts.push((name(&file), read(&file)?));
        }
    }
    Ok(texts)
}

/// The faults of what stands in files, as lint words them.
pub fn faults(texts: &[(String, String)]) -> String {
    let report = report(texts);
    let faults = report.findings.iter().filter(|finding| finding.level == Level::Error);
    faults.map(|finding| finding.text(RenderOptions::for_stderr())).collect()
}

/// The objects in a text that has no faults.
pub fn objects(text: &str) -> impl Iterator<Item = Value> {
    yaml::pages(text).into_iter().flatten().flat_map(members).map(|page| page.value)
}

/// How deep a folder is gone into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    One,
    All,
}

/// The files that a path stands for, in the order of their names.
fn files(path: &Path, depth: Depth) -> Result<Vec<PathBuf>, Fault> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |why: std::io::Error| Fault::usage(format!("cannot read {}: {why}", path.display()));
    let entries = std::fs::read_dir(path).map_err(unreadable)?;
    let mut entries =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let ending = entry.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if entry.is_dir() && depth == Depth::All {
            found.extend(files(&entry, depth)?);
        } else if !entry.is_dir() && ["yaml", "yml", "json"].contains(&ending) {
            found.push(entry);
        }
    }
    Ok(found)
}

fn name(file: &Path) -> String {
    if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() }
}

/// All findings over all files, in the order of the files.
fn report(texts: &[(String, String)]) -> Report {
    let mut report = Report::default();
    let mut objects = Vec::new();
    for (file, text) in texts {
        for page in yaml::pages(text) {
            match page {
                Ok(page) => objects.extend(members(page).into_iter().map(|page| (file, Ok(page)))),
                Err(wrong) => objects.push((file, Err(wrong))),
            }
        }
    }
    let pages = objects.iter().filter_map(|(_, page)| page.as_ref().ok());
    let templates: Templates =
        pages.filter_map(|page| Some((check::key(&page.value), check::template(&page.value)?))).collect();
    for (file, page) in objects {
        match page {
            Ok(page) => {
                let found = check::object(&page.value, &templates);
                report.objects += usize::from(found.notes.is_empty());
                report.findings.extend(placed(file, &page, found));
            }
            Err(wrong) => report.findings.push(Finding {
                level: Level::Error,
                file: file.clone(),
                line: wrong.line,
                object: String::new(),
                path: String::new(),
                message: wrong.why,
            }),
        }
    }
    let count = |level: Level| report.findings.iter().filter(|f| f.level == level).count();
    (report.errors, report.warnings) = (count(Level::Error), count(Level::Warning));
    report
}

/// The objects of a page: those of a List one by one, as kubectl takes them.
fn members(page: Page) -> Vec<Page> {
    let is_list = page.value.get("kind").and_then(Value::as_str) == Some("List");
    match page.value.get("items").and_then(Value::as_array) {
        Some(items) if is_list => {
            let part = |(index, item): (usize, &Value)| page.part(&format!("items[{index}]"), item.clone());
            items.iter().enumerate().map(part).collect()
        }
        _ => vec![page],
    }
}

fn placed(file: &str, page: &Page, found: ObjectFindings) -> Vec<Finding> {
    let object = check::title(&page.value);
    let levels =
        [(Level::Error, found.faults), (Level::Warning, found.warnings), (Level::Note, found.notes)].into_iter();
    let mut findings: Vec<Finding> = levels
        .flat_map(|(level, messages)| messages.into_iter().map(move |message| (level, message)))
        .map(|(level, message)| Finding {
            level,
            file: file.to_owned(),
            line: page.line(path(&message)),
            object: object.clone(),
            path: path(&message).to_owned(),
            message,
        })
        .collect();
    findings.extend(page.unlike.iter().map(|unlike| Finding {
        level: Level::Warning,
        file: file.to_owned(),
        line: Some(unlike.line),
        object: object.clone(),
        path: String::new(),
        message: unlike.why.clone(),
    }));
    findings.sort_by_key(|finding| finding.line);
    findings
}

#[cfg(test)]
mod tests;
