//! `run`: starts a run.

use std::path::{Path, PathBuf};

use kube::ResourceExt;
use serde_json::{Map, Value};

use super::connect::{Connection, post};
use super::fault::{Code, Fault};
use super::file::read;
use super::print::put;
use super::text::inline;
use super::{complete, control, doc, import, print, tree, value, watch, yaml};
use crate::api::limits::WORKFLOW_DOCUMENTS_BYTES;
use crate::api::name::LABEL_MADE_BY;
use crate::api::step::Format;
use crate::api::workflow::{InlineDocument, Phase, TemplateRef};
use crate::api::{Document, DocumentSpec, Workflow, WorkflowSpec, WorkflowTemplate};
use crate::cluster::chance::run_name;
use crate::definition::free_value;

/// Start a run of a template
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A parameter takes the type that the template's schema gives it: a text stays as it was typed (version=3.10, code=007). Without
a schema it is JSON where it is valid JSON and no digit is lost, else text: depth=2 is a number, depth='\"2\"' a text.

A FILE holds one Workflow, and Documents beside it, which are made first.

--from takes a file that kubectl lockstep export wrote. Where the exported run still is, what completed in it is taken over, decisions
included, as retry does. In another namespace or cluster the run begins anew with the same definition, parameters, input and
documents: every step runs, and nothing counts as approved. The Agents must be there.

With --wait the exit code is the run's: 0 completed, 1 failed or cancelled; standard error says what is waited for. Where a run
waits for people it goes on waiting; to leave then: watch --until-wait.

Examples:
  kubectl lockstep run default --input 'A shop for used bikes' -w
  kubectl lockstep run default --name shop --session shop --input @idea.md --doc brief=brief.md
  kubectl lockstep run default --param depth=3 --param filter=@filter.json
  kubectl lockstep run -f run.yaml -w
  kubectl lockstep run default --wait -o json | jq .status.output.value
  kubectl lockstep run --from run.json --session shop -w
  name=$(kubectl lockstep run default -o name)")]
pub struct Args {
    /// WorkflowTemplate to run
    #[arg(required_unless_present_any = ["file", "from"], add = complete::by(complete::templates))]
    template: Option<String>,
    /// Name of the run; TEMPLATE and five random characters unless told
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    flags: RunFlags,
    /// Watch the run to its end; the exit code is then the run's
    #[arg(short, long)]
    watch: bool,
    /// Wait for its end without showing it; the exit code is then the run's, and -o prints the run as it ended
    #[arg(long, conflicts_with = "watch")]
    wait: bool,
    /// A Workflow to start from, as YAML or JSON; the options change it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// An exported run to go on from; the options change it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "template"])]
    from: Option<PathBuf>,
}

/// What a run is to work on.
#[derive(clap::Args, Debug, Default)]
pub struct RunFlags {
    /// What the agents are asked for; @FILE reads a file, @- standard input
    #[arg(long, value_name = "TEXT|@FILE", allow_hyphen_values = true)]
    pub input: Option<String>,
    /// Session; runs of one session share its documents
    #[arg(long, add = complete::by(complete::sessions))]
    pub session: Option<String>,
    /// Parameter; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE|KEY=@FILE")]
    pub params: Vec<String>,
    /// Document of this run, its format by the file's ending (md, json, txt); may be repeated
    #[arg(long = "doc", value_name = "TYPE=FILE")]
    pub docs: Vec<String>,
}

impl RunFlags {
    /// The parameters, each of the type that the schema gives it.
    pub fn parameters(&self, schema: Option<&Map<String, Value>>) -> Result<Map<String, Value>, Fault> {
        parameters(&self.params, schema, &|file| read(Path::new(file)))
    }

    /// The run with all of them but the parameters.
    pub fn put_into(&self, mut run: Workflow) -> Result<Workflow, Fault> {
        if let Some(input) = &self.input {
            run.spec.input = Some(match input.strip_prefix('@') {
                Some(file) => read(Path::new(file))?,
                None => input.clone(),
            });
        }
        run.spec.session = self.session.clone().or(run.spec.session);
        for doc in &self.docs {
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
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let then = match (args.watch, args.wait) {
        (true, _) => Then::Watch,
        (false, true) => Then::Wait,
        (false, false) => Then::Leave,
    };
    let source = source(on, &args).await?;
    let mut wanted = workflow(&args, source.run)?;
    let schema = match &wanted.spec.template_ref {
        Some(template) => known_template(on, &template.name).await?,
        None => wanted.spec.parameters_schema.clone(),
    };
    if !args.flags.params.is_empty() {
        let given = args.flags.parameters(schema.as_ref())?;
        wanted.spec.parameters.get_or_insert_default().extend(given);
    }
    let template = wanted.spec.template_ref.as_ref().map(|template| template.name.clone());
    let base = source.base_name.or(template).unwrap_or_else(|| "run".to_owned());
    for document in &source.documents {
        put_document(on, document).await?;
    }
    for document in source.session_documents {
        doc::put_one(on, document).await?;
    }
    let naming = match wanted.metadata.name.take() {
        Some(name) => Naming::Given(name),
        None => Naming::Tried(Box::new(move || run_name(&base))),
    };
    let new = start(on, wanted, naming).await?;
    made(on, new, then).await
}

/// What a run is made from: a file, an export, or nothing but the flags.
struct RunSource {
    run: Workflow,
    /// The Documents of its file.
    documents: Vec<Document>,
    /// The documents of its session, of an export.
    session_documents: Vec<DocumentSpec>,
    /// The name that its own is derived from, of an export.
    base_name: Option<String>,
}

async fn source(on: &Connection, args: &Args) -> Result<RunSource, Fault> {
    if let Some(file) = &args.from {
        let made = import::from(on, file, args.flags.session.as_deref()).await?;
        let (session_documents, base_name) = (made.documents, Some(made.base));
        return Ok(RunSource { run: made.run, documents: Vec::new(), session_documents, base_name });
    }
    let (run, documents) = match &args.file {
        Some(file) => from_file(&file.display().to_string(), &read(file)?)?,
        None => (Workflow::new("", WorkflowSpec::default()), Vec::new()),
    };
    Ok(RunSource { run, documents, session_documents: Vec::new(), base_name: None })
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
    Wait,
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
    if then == Then::Wait {
        return waited(on, &made).await;
    }
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
        Then::Wait | Then::Leave => Ok(Code::Done),
    }
}

/// Waits for the end of the run, and prints it.
async fn waited(on: &Connection, made: &Workflow) -> Result<Code, Fault> {
    eprintln!("started {}", made.name_any());
    let over = control::ended(on, made).await?;
    let phase = over.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    if on.output.is_text() {
        put(&format!("{} is {phase}\n", over.name_any()))?;
        if let Some(why) = tree::ending(&over).filter(|_| phase != Phase::Completed) {
            eprintln!("{}", inline(&why, 1200));
        }
    } else {
        print::object(on.output, "Workflow", &over)?;
    }
    Ok(if phase == Phase::Completed { Code::Done } else { Code::Failed })
}

/// The schema of a template's parameters. One that is not there is said at once; a right to read it is not needed.
async fn known_template(on: &Connection, name: &str) -> Result<Option<Map<String, Value>>, Fault> {
    let template = on.read_if_allowed::<WorkflowTemplate>("template", name).await?;
    Ok(template.and_then(|template| template.spec.parameters_schema))
}

/// A Document of the file. One that is there already and says the same is as good.
async fn put_document(on: &Connection, document: &Document) -> Result<(), Fault> {
    let (api, name) = (on.api::<Document>(), document.name_any());
    match on.within("make the document", api.create(&post(), document)).await? {
        Ok(made) => {
            eprintln!("made document {}", made.name_any());
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let there: Document = on.read_known("read the document", &name).await?;
            if there.spec == document.spec {
                return Ok(());
            }
            Err(Fault::new(
                Code::Api,
                format!("there is a document {name} already, and it says something else; give this one another name"),
            ))
        }
        Err(wrong) => Err(Fault::call("make the document", &wrong)),
    }
}

/// The run without the parameters of the command line.
fn workflow(args: &Args, mut run: Workflow) -> Result<Workflow, Fault> {
    run.status = None;
    if let Some(name) = args.template.clone() {
        run.spec.template_ref = Some(TemplateRef { name });
    }
    run.metadata.name = args.name.clone().or(run.metadata.name).filter(|name| !name.is_empty());
    args.flags.put_into(run)
}

fn from_file(file: &str, text: &str) -> Result<(Workflow, Vec<Document>), Fault> {
    let wrong = |line: Option<u64>, why: &str| {
        let line = line.map_or_else(String::new, |line| format!("{line}:"));
        Fault::usage(format!("{file}:{line} {}", inline(why, 400)))
    };
    let (mut runs, mut documents) = (Vec::new(), Vec::new());
    for page in yaml::pages(text) {
        let page = page.map_err(|unreadable| wrong(unreadable.line, &unreadable.why))?;
        if let Some(unlike) = page.unlike.first() {
            return Err(wrong(Some(unlike.line), &unlike.why));
        }
        let line = page.line("");
        if let Some(at) = value::loss(&page.value, "") {
            let path = at.trim_start_matches('/').replace('/', ".");
            let why = format!("{path} is a number with more digits than the API server keeps; put it in quotes");
            return Err(wrong(page.line(&path).or(line), &why));
        }
        let kind = page.value.get("kind").and_then(Value::as_str).unwrap_or("missing").to_owned();
        let unfit = |why: serde_json::Error| wrong(line, &format!("is not a {kind}: {why}"));
        match kind.as_str() {
            "Workflow" => {
                let given = page.value.pointer("/spec/parameters");
                if let Some(fault) = given.and_then(free_value::nesting) {
                    return Err(wrong(page.line("spec.parameters").or(line), &format!("spec.parameters {fault}")));
                }
                runs.push(serde_json::from_value(page.value).map_err(unfit)?);
            }
            "Document" => documents.push(serde_json::from_value(page.value).map_err(unfit)?),
            _ => {
                let why = format!(
                    "the kind is {kind}; run takes a Workflow, and Documents beside it: kubectl apply the rest"
                );
                return Err(wrong(line, &why));
            }
        }
    }
    match runs.pop() {
        Some(run) if runs.is_empty() => Ok((run, documents)),
        Some(_) => Err(wrong(None, "has more than one Workflow; run starts one")),
        None => Err(wrong(None, "has no Workflow")),
    }
}

type FileReader<'a> = &'a dyn Fn(&str) -> Result<String, Fault>;

fn parameters(
    texts: &[String],
    schema: Option<&Map<String, Value>>,
    read: FileReader,
) -> Result<Map<String, Value>, Fault> {
    let mut all = Map::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Fault::usage(format!("--param {text:?} has no name; write it as key=value or key=@file.json")));
        };
        let value = if let Some(file) = value.strip_prefix('@') {
            let content = read(file)?;
            if let Some(fault) = free_value::nesting_of_text(&content) {
                return Err(Fault::usage(format!("--param {key}: {file} {fault}")));
            }
            match (serde_json::from_str::<Value>(&content), Path::new(file).extension()) {
                (Ok(value), _) => exact(value, &content, key, file)?,
                (Err(why), Some(ending)) if ending == "json" => {
                    return Err(Fault::usage(format!("--param {key}: {file} is not valid JSON: {why}")));
                }
                (Err(_), _) => Value::String(content),
            }
        } else {
            let own = schema.and_then(|schema| value::of_parameter(schema, key));
            let typed =
                value::typed(value, own.as_ref()).map_err(|why| Fault::usage(format!("--param {key}: {why}")))?;
            if own.is_none() && value::is_spared(value, &typed) {
                eprintln!("note: {key} is the text {typed}: as a number it would lose digits");
            }
            typed
        };
        all.insert(key.to_owned(), value);
    }
    Ok(all)
}

/// A value of which the API server keeps every digit.
fn exact(value: Value, text: &str, key: &str, file: &str) -> Result<Value, Fault> {
    match value::inexact(text, &value) {
        None => Ok(value),
        Some(at) => Err(Fault::usage(format!(
            "--param {key}: {file} has a number with more digits than the API server keeps (at {at}); put it in quotes"
        ))),
    }
}

fn document(text: &str, read: FileReader) -> Result<InlineDocument, Fault> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(name: &str) -> Result<String, Fault> {
        match name {
            "f.json" => Ok("{\"a\": [1]}".to_owned()),
            "bad.json" => Ok("{a".to_owned()),
            "deep.txt" => Ok(format!("{}{}", "[".repeat(200), "]".repeat(200))),
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
            ("n=@deep.txt", None),
            ("n=@none", None),
            ("=x", None),
            ("n", None),
        ];
        for (text, expected) in table {
            let value = parameters(&[text.to_owned()], None, &files).ok().and_then(|mut all| all.remove("n"));
            assert_eq!(value, expected, "{text}");
        }
    }

    #[test]
    fn a_file_holds_one_run_and_its_documents() {
        let run = "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: shop}\nspec: {templateRef: {name: t}, parameters: {mode: '0644'}}\n";
        let document = "---\napiVersion: lockstep.dev/v1alpha1\nkind: Document\nmetadata: {name: d}\nspec: {type: brief, scope: Namespace, format: markdown, content: x}\n";
        let found = from_file("f", &format!("{run}{document}")).map(|(run, all)| (run.name_any(), all.len()));
        assert!(matches!(&found, Ok((name, 1)) if name == "shop"), "{found:?}");
        for (text, words) in [
            (document.to_owned(), "has no Workflow"),
            (format!("{run}---\n{run}"), "more than one Workflow"),
            (format!("{run}---\nkind: Agent\n"), "the kind is Agent"),
            (run.replace("'0644'", "0644"), "f:4: 0644 is the number 420"),
            (run.replace("mode: '0644'", "n: 1"), "the key n is"),
            (run.replace("'0644'", "12345678901234567890"), "spec.parameters.mode is a number with more digits"),
            ("a: [".to_owned(), "is not valid YAML"),
        ] {
            let told = from_file("f", &text).err().map(|fault| fault.text).unwrap_or_default();
            assert!(told.contains(words), "{text}: {told:?}");
        }
    }

    #[test]
    fn parameters_of_a_file_that_nest_too_deep_are_refused() {
        let nested = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let run = format!(
            "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: shop}}\nspec: {{templateRef: {{name: t}}, parameters: {{mode: {nested}}}}}\n"
        );
        let fault = from_file("f", &run).err().map(|fault| fault.text).unwrap_or_default();
        assert!(fault.contains("f:4: spec.parameters nests 66 levels"), "{fault}");
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
}
