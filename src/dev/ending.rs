//! What a run has made, for its end: its documents and its output as files, and what went wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::ResourceExt;
use kube::api::ListParams;

use super::folder::{Folder, pod_name};
use crate::api::document::{DocumentPhase, OUTPUT_TYPE};
use crate::api::name::LABEL_WORKFLOW;
use crate::api::{Document, StepRun, Workflow};
use crate::cli::connect::Connection;
use crate::cli::fault::{Code, Fault};
use crate::cli::print::{put, put_result};
use crate::cli::target::label;
use crate::cli::text::{block, indent, inline};
use crate::decide::content::{Content, Loaded, Pin};
use crate::protocol::{FileNames, file_name};

/// How much of it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// Where the files are.
    Places,
    /// Of one Agent's trial: all that it made.
    Whole,
}

/// Writes what there is into the folder, and says so.
pub async fn tell(on: &Connection, run: &Workflow, folder: &Folder, telling: Telling) -> Result<(), Fault> {
    let failed = |error: std::io::Error| Fault::new(Code::Api, format!("cannot write what the run has made: {error}"));
    let made = documents(on, run).await?;
    let mut places = Vec::new();
    for (place, document) in &made {
        let path = folder.documents().join(place);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, &document.spec.content).map_err(failed)?;
        places.push((path, document));
    }
    let output = output(on, run).await?;
    if let Some(output) = &output {
        std::fs::write(folder.output(), format!("{output}\n")).map_err(failed)?;
    }
    let steps = on.step_runs(&run.name_any()).await?;
    for step in steps.iter().filter(|step| step.spec.workflow.uid == run.uid().unwrap_or_default()) {
        if let Some(text) = trouble(step, folder) {
            eprintln!("{}", block(&text, usize::MAX));
        }
    }
    for (path, document) in places {
        match telling {
            Telling::Places => put(&format!("{}  {}\n", document.spec.document_type, shown(&path)))?,
            Telling::Whole => {
                eprintln!("{}", shown(&path));
                put_result(&format!("{}\n", block(document.spec.content.trim_end(), usize::MAX)))?;
            }
        }
    }
    match (output, telling) {
        (Some(_), Telling::Places) => put(&format!("output  {}\n", shown(&folder.output())))?,
        (Some(output), Telling::Whole) => put_result(&format!("{}\n", block(&output, usize::MAX)))?,
        (None, _) => {}
    }
    Ok(())
}

/// As somebody here would write it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// The documents that the run's steps made, by where they are put.
async fn documents(on: &Connection, run: &Workflow) -> Result<BTreeMap<PathBuf, Document>, Fault> {
    let params = ListParams::default().labels(&format!("{LABEL_WORKFLOW}={}", run.name_any()));
    let list = on.list("list the documents", on.api::<Document>(), &params).await?;
    let is_made = |document: &Document| {
        let phase = document.status.as_ref().and_then(|status| status.phase);
        document.spec.path.is_some()
            && document.spec.document_type != OUTPUT_TYPE
            && phase == Some(DocumentPhase::Published)
    };
    let mut names = FileNames::default();
    let mut made = BTreeMap::new();
    for document in list.items.into_iter().filter(is_made) {
        let keys = document.spec.scope_id.as_deref().and_then(|scope| Some(scope.split_once('/')?.1.to_owned()));
        let mut base = PathBuf::from(file_name(&document.spec.document_type));
        base.extend(keys.iter().flat_map(|keys| keys.split('/')).map(file_name));
        let ending = document.spec.format.extension();
        let place = names.unique(base.display().to_string());
        made.insert(PathBuf::from(format!("{place}.{ending}")), document);
    }
    Ok(made)
}

/// The run's output, as JSON text.
async fn output(on: &Connection, run: &Workflow) -> Result<Option<String>, Fault> {
    let Some(output) = run.status.as_ref().and_then(|status| status.output.clone()) else { return Ok(None) };
    if let Some(value) = output.value {
        return Ok(Some(value));
    }
    let Some(name) = output.document_name else { return Ok(None) };
    let found: Option<Document> = on.read("read the output", &name).await?;
    let loaded = found.map(|found| Loaded::new(Arc::new(found)));
    let pin = Pin { name, uid: None, digest: Some(output.digest) };
    let content = Content::of(&pin, loaded.as_ref());
    let content = content.map_err(|changed| Fault::new(Code::Exchanged, changed.to_string()))?;
    Ok(Some(content.text().to_owned()))
}

/// What went wrong with a step that failed: its faults, the end of its log, and where its folder is.
fn trouble(step: &StepRun, folder: &Folder) -> Option<String> {
    let status = step.status.as_ref()?;
    let error = status.error.as_ref().filter(|_| status.completed_at.is_some())?;
    let mut text = format!("{}: {}: {}", inline(&label(step), 1024), error.class, error.message);
    if let Some(tail) = error.log_tail.as_deref().filter(|tail| !tail.trim().is_empty()) {
        text.push_str(&format!("\n  its log ends with:\n{}", indent(tail.trim_end(), "  | ")));
    }
    let job = status.job.as_ref()?;
    let attempt = folder.attempt(&pod_name(&job.name, &job.uid));
    text.push_str(&format!("\n  what it worked with: {}", shown(attempt.folder())));
    Some(text)
}
