//! `run`: starts a run.

#![expect(clippy::disallowed_methods, reason = "five characters that make a run's name its own")]

use std::hash::BuildHasher;
use std::path::{Path, PathBuf};

use kube::ResourceExt;
use serde_json::{Map, Value};

use super::connect::{Connection, post};
use super::fault::{Code, Fault};
use super::print::put;
use super::text::inline;
use super::{print, watch};
use crate::api::limits::WORKFLOW_DOCUMENTS_BYTES;
use crate::api::name::LABEL_MADE_BY;
use crate::api::step::Format;
use crate::api::workflow::{InlineDocument, TemplateRef};
use crate::api::{Workflow, WorkflowSpec, WorkflowTemplate};

/// Start a run of a template
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A parameter's value is taken as JSON where it is valid JSON, else as text: depth=2 is a number, depth='\"2\"' a text.

Examples:
  kubectl lockstep run default --input 'A shop for used bikes' -w
  kubectl lockstep run default --name shop --session shop --input @idea.md --doc brief=brief.md
  kubectl lockstep run default --param depth=3 --param filter=@filter.json
  kubectl lockstep run -f run.yaml -w
  name=$(kubectl lockstep run default -o name)")]
pub struct Args {
    /// WorkflowTemplate to run
    #[arg(required_unless_present = "file")]
    template: Option<String>,
    /// Name of the run; TEMPLATE and five random characters unless told
    #[arg(long)]
    name: Option<String>,
    /// What the agents are asked for; @FILE reads a file, @- standard input
    #[arg(long, value_name = "TEXT|@FILE", allow_hyphen_values = true)]
    input: Option<String>,
    /// Session; runs of one session share its documents
    #[arg(long)]
    session: Option<String>,
    /// Parameter; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE|KEY=@FILE")]
    params: Vec<String>,
    /// Document of this run, its format by the file's ending (md, json, txt); may be repeated
    #[arg(long = "doc", value_name = "TYPE=FILE")]
    docs: Vec<String>,
    /// Watch the run to its end; the exit code is then the run's
    #[arg(short, long)]
    watch: bool,
    /// A Workflow to start from, as YAML or JSON; the options change it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let watch = args.watch;
    let mut wanted = workflow(args)?;
    let base = match &wanted.spec.template_ref {
        Some(template) => {
            known_template(on, &template.name).await?;
            template.name.clone()
        }
        None => "run".to_owned(),
    };
    let naming = match wanted.metadata.name.take() {
        Some(name) => Naming::Given(name),
        None => Naming::Tried(Box::new(move || generated(&base))),
    };
    let new = start(on, wanted, naming).await?;
    made(on, new, if watch { Then::Watch } else { Then::Leave }).await
}

/// How a new run gets its name.
pub enum Naming {
    Given(String),
    /// Another one each time, until one is free.
    Tried(Box<dyn FnMut() -> String>),
}

/// What follows the making of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Watch,
    Leave,
}

/// Names tried before giving up.
const TRIES: usize = 50;

/// Makes the run; marked as made here, so that it may go when its time is up.
pub async fn start(on: &Connection, mut wanted: Workflow, mut naming: Naming) -> Result<Workflow, Fault> {
    let labels = wanted.metadata.labels.get_or_insert_default();
    labels.insert(LABEL_MADE_BY.to_owned(), "cli".to_owned());
    let api = on.api::<Workflow>();
    let mut tries = 0;
    loop {
        let name = match &mut naming {
            Naming::Given(name) => name.clone(),
            Naming::Tried(next) => next(),
        };
        wanted.metadata.name = Some(name.clone());
        tries += 1;
        match on.within("start the run", api.create(&post(), &wanted)).await? {
            Ok(made) => return Ok(made),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                if matches!(naming, Naming::Given(_)) || tries >= TRIES {
                    return Err(Fault::new(
                        Code::Api,
                        format!(
                            "there is a run {name} already; choose another --name, or see {}",
                            on.hint("show", &name)
                        ),
                    ));
                }
            }
            Err(wrong) => return Err(Fault::call("start the run", &wrong)),
        }
    }
}

/// Says what was made; then follows it, if that was asked for.
pub async fn made(on: &Connection, made: Workflow, then: Then) -> Result<Code, Fault> {
    let name = made.name_any();
    if !on.output.is_text() {
        print::object(on.output, "Workflow", &made)?;
    } else if then == Then::Watch {
        eprintln!("started {name}");
    } else {
        put(&format!("{name}\n"))?;
        eprintln!("next: {}", on.hint("watch", &name));
    }
    match then {
        Then::Watch => watch::follow(on, made, watch::Until::End).await,
        Then::Leave => Ok(Code::Done),
    }
}

/// A template that is not there is said at once; a right to read it is not needed.
async fn known_template(on: &Connection, name: &str) -> Result<(), Fault> {
    let api = on.api::<WorkflowTemplate>();
    match on.within("read the template", api.get_metadata_opt(name)).await? {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(on.unknown::<WorkflowTemplate>("template", name).await),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(wrong) => Err(Fault::call("read the template", &wrong)),
    }
}

fn workflow(args: Args) -> Result<Workflow, Fault> {
    let mut run = match &args.file {
        Some(file) => from_file(file)?,
        None => Workflow::new("", WorkflowSpec::default()),
    };
    run.status = None;
    if let Some(name) = args.template {
        run.spec.template_ref = Some(TemplateRef { name });
    }
    run.metadata.name = args.name.or(run.metadata.name).filter(|name| !name.is_empty());
    if let Some(input) = args.input {
        run.spec.input = Some(match input.strip_prefix('@') {
            Some(file) => read(Path::new(file))?,
            None => input,
        });
    }
    run.spec.session = args.session.or(run.spec.session);
    if !args.params.is_empty() {
        let mut all = run.spec.parameters.take().unwrap_or_default();
        all.extend(parameters(&args.params, &|file| read(Path::new(file)))?);
        run.spec.parameters = Some(all);
    }
    for doc in &args.docs {
        let doc = document(doc, &|file| read(Path::new(file)))?;
        run.spec.documents.retain(|d| d.document_type != doc.document_type);
        run.spec.documents.push(doc);
    }
    let bytes: usize = run.spec.documents.iter().map(|d| d.content.len()).sum();
    if bytes > WORKFLOW_DOCUMENTS_BYTES {
        return Err(Fault::usage(format!(
            "the documents of a run may have {WORKFLOW_DOCUMENTS_BYTES} bytes in all, these have {bytes}; put large ones as Document objects"
        )));
    }
    Ok(run)
}

fn from_file(file: &Path) -> Result<Workflow, Fault> {
    let wrong = |why: String| Fault::usage(format!("{} is not a Workflow: {}", file.display(), inline(&why, 400)));
    let text = read(file)?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|why| wrong(why.to_string()))?;
    match value.get("kind").and_then(Value::as_str) {
        Some("Workflow") => serde_json::from_value(value).map_err(|why| wrong(why.to_string())),
        other => Err(wrong(format!("its kind is {}", other.unwrap_or("missing")))),
    }
}

/// The text of a file, or of standard input.
pub fn read(file: &Path) -> Result<String, Fault> {
    let text =
        if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    text.map_err(|why| Fault::usage(format!("cannot read {}: {why}", file.display())))
}

type Reader<'a> = &'a dyn Fn(&str) -> Result<String, Fault>;

fn parameters(texts: &[String], read: Reader) -> Result<Map<String, Value>, Fault> {
    let mut all = Map::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Fault::usage(format!("--param {text:?} has no name; write it as key=value or key=@file.json")));
        };
        let value = match value.strip_prefix('@') {
            Some(file) => {
                let content = read(file)?;
                match serde_json::from_str(&content) {
                    Ok(value) => value,
                    Err(why) if Path::new(file).extension().is_some_and(|e| e == "json") => {
                        return Err(Fault::usage(format!("--param {key}: {file} is not valid JSON: {why}")));
                    }
                    Err(_) => Value::String(content),
                }
            }
            None => serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())),
        };
        all.insert(key.to_owned(), value);
    }
    Ok(all)
}

fn document(text: &str, read: Reader) -> Result<InlineDocument, Fault> {
    let Some((document_type, file)) = text.split_once('=').filter(|(kind, file)| !kind.is_empty() && !file.is_empty())
    else {
        return Err(Fault::usage(format!("--doc {text:?} is not understood; write it as type=FILE")));
    };
    let format = match Path::new(file).extension().and_then(|e| e.to_str()) {
        Some("json") => Format::Json,
        Some("md" | "markdown") => Format::Markdown,
        Some("txt") => Format::Text,
        _ => {
            return Err(Fault::usage(format!(
                "--doc {text}: the format is not known by the ending; name the file .md, .json or .txt"
            )));
        }
    };
    let content = read(file)?;
    if format == Format::Json
        && let Err(why) = serde_json::from_str::<Value>(&content)
    {
        return Err(Fault::usage(format!("--doc {text}: not valid JSON: {why}")));
    }
    Ok(InlineDocument { document_type: document_type.to_owned(), format, content })
}

/// The template's name, cut so that all fits, and five random characters.
fn generated(template: &str) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = std::hash::RandomState::new().hash_one(std::process::id());
    let head: String = template.chars().take(46).collect();
    let mut name = format!("{}-", head.trim_end_matches(['-', '.']));
    for _ in 0..5 {
        name.push(char::from(DIGITS[(random % 36) as usize]));
        random /= 36;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(name: &str) -> Result<String, Fault> {
        match name {
            "f.json" => Ok("{\"a\": [1]}".to_owned()),
            "bad.json" => Ok("{a".to_owned()),
            "t.txt" | "t.md" => Ok("hello".to_owned()),
            _ => Err(Fault::usage("no such file")),
        }
    }

    #[test]
    fn parameters_are_json_where_they_can_be() {
        let table = [
            ("n=2", Some(json!(2))),
            ("n=true", Some(json!(true))),
            ("n=\"2\"", Some(json!("2"))),
            ("n={\"a\":1}", Some(json!({"a": 1}))),
            ("n=two words", Some(json!("two words"))),
            ("n=a=b", Some(json!("a=b"))),
            ("n=", Some(json!(""))),
            ("n=@f.json", Some(json!({"a": [1]}))),
            ("n=@t.txt", Some(json!("hello"))),
            ("n=@bad.json", None),
            ("n=@none", None),
            ("=x", None),
            ("n", None),
        ];
        for (text, expected) in table {
            let value = parameters(&[text.to_owned()], &files).ok().and_then(|mut all| all.remove("n"));
            assert_eq!(value, expected, "{text}");
        }
    }

    #[test]
    fn documents_take_their_format_from_the_ending() {
        let table = [
            ("brief=t.md", Some(Format::Markdown)),
            ("brief=t.txt", Some(Format::Text)),
            ("brief=f.json", Some(Format::Json)),
            ("brief=bad.json", None),
            ("brief=t.pdf", None),
            ("brief", None),
            ("=t.md", None),
            ("brief=", None),
        ];
        for (text, expected) in table {
            assert_eq!(document(text, &files).ok().map(|d| d.format), expected, "{text}");
        }
    }

    #[test]
    fn generated_names_are_legal() {
        for template in ["default", &"x".repeat(52), "a-"] {
            let name = generated(template);
            assert!(name.len() <= 52, "{name}");
            assert!(!name.contains("--"), "{name}");
        }
        assert_ne!(generated("default"), generated("default"));
    }
}
