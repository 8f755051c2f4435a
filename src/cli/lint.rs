//! `lint`: what the API server and the operator would say of files, without a cluster: their own schemas and checks.

mod check;
mod structure;
mod warn;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::fault::{Code, Fault};
use super::print::{self, Format, put};
use super::run::read;
use super::text::inline;
use super::yaml::{self, Page};
use check::{Found, Templates};

/// Check templates, runs and agents in files, without a cluster
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The messages are those of the objects' conditions. Parameters of a run are checked where its template is among the
files. Objects of other kinds are ignored. Warnings leave the exit code as it is.

Exit codes: 0 clean, 1 faults, 2 wrong usage or a file that cannot be read.

Examples:
  kubectl lockstep lint flow.yaml
  kubectl lockstep lint agents.yaml flow.yaml run.yaml
  kustomize build . | kubectl lockstep lint - -o json")]
pub struct Args {
    /// YAML or JSON files; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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
    fn text(&self) -> String {
        let line = self.line.map_or_else(String::new, |line| format!("{line}:"));
        let object = if self.object.is_empty() { String::new() } else { format!("{}: ", self.object) };
        format!("{}:{line} {}: {object}{}\n", self.file, self.level.word(), inline(&self.message, 2048))
    }
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
    let mut texts = Vec::new();
    for file in &args.files {
        texts.push((name(file), read(file)?));
    }
    let report = report(&texts);
    if format.is_text() {
        put(&report.findings.iter().map(Finding::text).collect::<String>())?;
        eprintln!("objects: {}, errors: {}, warnings: {}", report.objects, report.errors, report.warnings);
    } else {
        let value = serde_json::to_value(&report)
            .map_err(|wrong| Fault::new(Code::Api, format!("cannot print the report: {wrong}")))?;
        print::plain(format, &value)?;
    }
    Ok(if report.errors > 0 { Code::Failed } else { Code::Done })
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

fn placed(file: &str, page: &Page, found: Found) -> Vec<Finding> {
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
