//! `doc`: documents that steps read, as people put, list and read them.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::Value;

use super::complete;
use super::connect::{Connection, Everywhere, Reach, post};
use super::fault::{Code, Fault};
use super::file::read;
use super::line::RenderOptions;
use super::print::{self, put};
use super::table::{Cell, table};
use super::text::{age, block, inline, near, short_digest};
use crate::api::document::Scope;
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step::Format;
use crate::api::{Document, DocumentSpec};
use crate::decide::content::{Content, Loaded, Pin};
use crate::decide::document::{self, Viewpoint};

/// Copies of one content that are told apart, after others came in between.
const COPIES: u32 = 32;
/// Documents that are asked for at once: each may have 512 KiB.
const PAGE: u32 = 50;
/// Files of one folder.
const FILES: usize = 500;

/// Put, list and read the documents that steps read
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A document is found by its type: the file brief.md becomes a document of the type brief, and a folder a document of each file in
it that ends in .md, .txt or .json (other files and folders in it are left out, and stderr says so). All runs of the namespace find it, or with
--session or --project those of one session or project. A document never changes: what is put later is a newer revision, and
the same content again is the same document. All files are looked at before the first one is put.

You need the right to create documents (ClusterRole lockstep-edit), for get and list to read them (lockstep-view).

Exit codes: 0 done, 2 wrong usage, or a file that can be no document, 4 no such document, 5 the API server refused, 6 the document
is not what was published.

Examples:
  kubectl lockstep doc put docs/ --session spring-campaign
  kubectl lockstep doc put idea.md --type brief
  kubectl lockstep doc list --type brief
  kubectl lockstep doc get epic-backlog --run shop > backlog.json
  kubectl lockstep doc get shop-brief-81f794d4df7cd98a")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Put files as documents, each of the type that its name says
    Put {
        /// A file, or a folder of them
        #[arg(required = true, value_name = "FILE|FOLDER")]
        paths: Vec<PathBuf>,
        /// The type, where the name of the one file does not say it
        #[arg(long = "type", value_name = "TYPE")]
        document_type: Option<String>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Print a document as it was published
    Get {
        /// The name of the Document, or a type: then the one that the run, the session, the project or the namespace sees
        #[arg(value_name = "TYPE|NAME", add = complete::by(complete::documents))]
        what: String,
        /// As the steps of this run see it
        #[arg(long, conflicts_with_all = ["session", "project"], add = complete::by(complete::runs))]
        run: Option<String>,
        /// As the steps of this item of the run see it, from the outermost forEach inwards
        #[arg(long, value_name = "KEY[/KEY]", requires = "run")]
        key: Option<String>,
        #[command(flatten)]
        whose: Whose,
    },
    /// List documents
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this type
        #[arg(long = "type", value_name = "TYPE")]
        document_type: Option<String>,
        /// Only those that were made in this run
        #[arg(long, add = complete::by(complete::runs))]
        run: Option<String>,
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        everywhere: Everywhere,
    },
}

/// Who finds the document.
#[derive(clap::Args, Debug)]
struct Whose {
    /// Of this session
    #[arg(long, conflicts_with = "project", add = complete::by(complete::sessions))]
    session: Option<String>,
    /// Of this project
    #[arg(long)]
    project: Option<String>,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    match args.verb {
        Verb::Put { paths, document_type, whose } => put_all(on, &paths, document_type.as_deref(), &whose).await,
        Verb::Get { what, run, key, whose } => get(on, &what, run.as_deref(), key.as_deref(), &whose).await,
        Verb::List { document_type, run, whose, everywhere } => {
            let wanted = [
                ("spec.type", &document_type),
                ("spec.workflow", &run),
                ("spec.session", &whose.session),
                ("spec.project", &whose.project),
            ];
            let fields = wanted.into_iter().filter_map(|(field, value)| Some(format!("{field}={}", value.as_ref()?)));
            list(on, &fields.collect::<Vec<_>>().join(","), everywhere.reach()).await
        }
    }
}

/// All of the files are read, and fit, before the first is put.
async fn put_all(
    on: &Connection,
    paths: &[PathBuf],
    document_type: Option<&str>,
    whose: &Whose,
) -> Result<Code, Fault> {
    let files = files(paths)?;
    if let (Some(_), [_, _, ..]) = (document_type, files.as_slice()) {
        return Err(Fault::usage(format!(
            "--type names the type of one file, these are {}; name the files after their types, and leave --type out",
            files.len()
        )));
    }
    let mut specs: Vec<(PathBuf, DocumentSpec)> = Vec::new();
    for file in files {
        let spec = spec_of(&file, document_type, whose, &read(&file)?)?;
        if let Some((other, _)) = specs.iter().find(|(_, known)| known.document_type == spec.document_type) {
            return Err(Fault::usage(format!(
                "{} and {} are both of the type {}; put one of them",
                other.display(),
                file.display(),
                spec.document_type
            )));
        }
        specs.push((file, spec));
    }
    let mut made = Vec::new();
    for (_, spec) in specs {
        let (document, is_new) = put_one(on, spec).await?;
        if on.output.is_text() {
            let word = if is_new { "is put" } else { "is there already" };
            put(&format!("{} {word}: {}\n", document.spec.document_type, document.name_any()))?;
        }
        made.push(document);
    }
    if !on.output.is_text() {
        print::list(on.output, "Document", &made)?;
    }
    Ok(Code::Done)
}

/// Puts a document, unless the newest one says the same; and whether it is new.
pub async fn put_one(on: &Connection, spec: DocumentSpec) -> Result<(Document, bool), Fault> {
    let api = on.api::<Document>();
    for copy in 0..COPIES {
        let name = document::put_name(&spec, copy);
        match on.within("put the document", api.create(&post(), &Document::new(&name, spec.clone()))).await? {
            Ok(made) => return Ok((made, true)),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(wrong) => return Err(Fault::call("put the document", &wrong)),
        }
        let there: Document = on.read_known("read the document", &name).await?;
        if document::is_newest_of(&there, &spec) {
            return Ok((there, false));
        }
        // Another one came in between: the same content is put once more, as the newest.
    }
    let kind = &spec.document_type;
    Err(Fault::new(
        Code::Api,
        format!(
            "this document of the type {kind} was put too often, with others in between; change it, or delete older ones"
        ),
    ))
}

/// The files that are meant: of a folder those that can be documents, in the order of their names.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Fault> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let unread = |why: std::io::Error| Fault::usage(format!("cannot read the folder {}: {why}", path.display()));
        let entries = std::fs::read_dir(path).map_err(unread)?;
        let mut within: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(unread)?;
        within.sort();
        let before = all.len();
        for file in within {
            if file.is_file() && format_of(&file).is_some() && !is_hidden(&file) {
                all.push(file);
            } else if !is_hidden(&file) {
                eprintln!("left out: {}", inline(&file.display().to_string(), 300));
            }
        }
        if all.len() == before {
            return Err(Fault::usage(format!(
                "the folder {} has no file that ends in .md, .txt or .json; name each after the type of its document, as brief.md",
                path.display()
            )));
        }
    }
    if all.len() > FILES {
        return Err(Fault::usage(format!("these are {} files; put at most {FILES} at once", all.len())));
    }
    Ok(all)
}

fn is_hidden(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn format_of(file: &Path) -> Option<Format> {
    match file.extension()?.to_str()? {
        "json" => Some(Format::Json),
        "md" | "markdown" => Some(Format::Markdown),
        "txt" => Some(Format::Text),
        _ => None,
    }
}

/// The document that a file becomes.
fn spec_of(file: &Path, told: Option<&str>, whose: &Whose, content: &str) -> Result<DocumentSpec, Fault> {
    let wrong = |why: String| Fault::usage(format!("{}: {why}", file.display()));
    let format = format_of(file)
        .ok_or_else(|| wrong("the format is not known by the ending; name the file .md, .json or .txt".to_owned()))?;
    let document_type = match told {
        Some(told) => told.to_owned(),
        None => file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    if let Some(why) = type_fault(&document_type) {
        let why = format!("{:?} is no type of a document: {why}", inline(&document_type, 80));
        return Err(wrong(if told.is_some() { why } else { format!("{why}; rename the file, or say --type TYPE") }));
    }
    if content.len() > DOCUMENT_BYTES {
        return Err(wrong(format!(
            "has {} bytes, a document at most {DOCUMENT_BYTES}; store it elsewhere, and put a document of the format link (kubectl apply)",
            content.len()
        )));
    }
    if format == Format::Json
        && let Err(why) = serde_json::from_str::<Value>(content)
    {
        return Err(wrong(format!("is not valid JSON: {why}")));
    }
    let (session, project) = (whose.session.clone(), whose.project.clone());
    let scope = match (&session, &project) {
        (Some(_), _) => Scope::Session,
        (None, Some(_)) => Scope::Project,
        (None, None) => Scope::Namespace,
    };
    Ok(DocumentSpec {
        document_type,
        scope,
        session,
        project,
        format,
        content: content.to_owned(),
        ..Default::default()
    })
}

/// Why a text can be no type of a document that people put.
fn type_fault(document_type: &str) -> Option<&'static str> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = document_type.starts_with(|c: char| c.is_ascii_lowercase());
    if document_type.len() > 63 || !begins || !document_type.chars().all(legal) {
        return Some("it must be a small letter, then small letters, digits and '-', at most 63 characters");
    }
    document_type.starts_with("lockstep-").then_some("those that begin with lockstep- are Lockstep's own")
}

async fn get(on: &Connection, what: &str, run: Option<&str>, key: Option<&str>, whose: &Whose) -> Result<Code, Fault> {
    let what = what.strip_prefix("document.lockstep.dev/").unwrap_or(what);
    let from = match run {
        Some(run) => document::viewpoint(&on.workflow(run).await?, key.unwrap_or_default()),
        None => Viewpoint {
            session: whose.session.clone().unwrap_or_default(),
            project: whose.project.clone(),
            ..Viewpoint::default()
        },
    };
    let by_type = run.is_some() || whose.session.is_some() || whose.project.is_some();
    let named = if by_type { None } else { on.read::<Document>("read the document", what).await? };
    let found = match named {
        Some(found) => found,
        None => match seen(on, what, &from).await? {
            Some(found) => found,
            None => return Err(nowhere(on, what, run).await),
        },
    };
    if !on.output.is_text() {
        print::object(on.output, "Document", &found)?;
        return Ok(Code::Done);
    }
    // A draft has no digest yet: it is shown as the gate shows it, by `show`.
    if found.status.as_ref().is_some_and(|status| status.digest.is_some()) {
        let pin = Pin::published(&found);
        let loaded = Loaded::new(Arc::new(found.clone()));
        Content::of(&pin, Some(&loaded)).map_err(|changed| Fault::new(Code::Exchanged, changed.to_string()))?;
    }
    let content = &found.spec.content;
    // What goes into a file or another program is the document, to the byte.
    if std::io::stdout().is_terminal() {
        put(&format!("{}\n", block(content, usize::MAX).trim_end_matches('\n')))?;
    } else {
        put(content)?;
    }
    Ok(Code::Done)
}

/// The document of that type that is seen from there: the narrowest scope, in it the highest revision.
async fn seen(on: &Connection, document_type: &str, from: &Viewpoint) -> Result<Option<Document>, Fault> {
    if type_fault(document_type).is_some() {
        return Ok(None);
    }
    for scope in from.scopes() {
        if scope.0 != Scope::Namespace && scope.1.is_empty() {
            continue;
        }
        let params = ListParams::default().fields(&document::selector(&scope, Some(document_type)));
        let there = on.list("look for the document", on.api::<Document>(), &params).await?.items;
        let newest = there.into_iter().max_by(|a, b| document::rank(a).cmp(&document::rank(b)));
        if newest.is_some() {
            return Ok(newest);
        }
    }
    Ok(None)
}

async fn nowhere(on: &Connection, what: &str, run: Option<&str>) -> Fault {
    let listed = paged(on, "", Reach::Namespace).await.unwrap_or_default();
    let mut types: Vec<String> = listed.into_iter().map(|d| d.spec.document_type).collect();
    types.sort();
    types.dedup();
    let who = run.map_or_else(|| format!("the namespace {}", on.namespace), |run| format!("the run {run}"));
    let remedy = match near(what, &types).as_slice() {
        _ if types.iter().any(|kind| kind == what) => {
            "those of that type are not published (yet), or are seen by others; see kubectl lockstep doc list"
                .to_owned()
        }
        [] => "see kubectl lockstep doc list".to_owned(),
        close => format!("did you mean {}?", close.join(" or ")),
    };
    Fault::missing(format!("{who} sees no published document {}; {remedy}", inline(what, 120)))
}

/// All of them but Lockstep's own, a page after the other, without what they hold.
async fn paged(on: &Connection, fields: &str, reach: Reach) -> Result<Vec<Document>, Fault> {
    let mut all: Vec<Document> = Vec::new();
    let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
    if !fields.is_empty() {
        params = params.fields(fields);
    }
    loop {
        let page = on.list("list the documents", on.reaching::<Document>(reach), &params).await?;
        let own = page.items.into_iter().filter(|d| !d.spec.document_type.starts_with("lockstep-"));
        all.extend(own.map(|mut document| {
            if on.output.is_text() {
                document.spec.content = String::new();
            }
            document
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    all.sort_by_key(|d| (d.namespace(), d.spec.document_type.clone(), d.creation_timestamp(), d.name_any()));
    Ok(all)
}

async fn list(on: &Connection, fields: &str, reach: Reach) -> Result<Code, Fault> {
    let documents = paged(on, fields, reach).await?;
    if !on.output.is_text() {
        print::list(on.output, "Document", &documents)?;
    } else if documents.is_empty() {
        eprintln!("no documents; put one with kubectl lockstep doc put FILE");
    } else {
        put(&text(&documents, reach, Timestamp::now(), RenderOptions::for_stdout()))?;
    }
    Ok(Code::Done)
}

pub fn text(documents: &[Document], reach: Reach, now: Timestamp, options: RenderOptions) -> String {
    let mut heads = vec!["TYPE", "NAME", "SEEN BY", "PHASE", "REVISION", "AGE", "DIGEST"];
    if reach == Reach::Cluster {
        heads.insert(0, "NAMESPACE");
    }
    let rows: Vec<Vec<Cell>> = documents.iter().map(|document| row(document, reach, now)).collect();
    table(&heads, &rows, options)
}

fn row(document: &Document, reach: Reach, now: Timestamp) -> Vec<Cell> {
    let status = document.status.clone().unwrap_or_default();
    let mut cells: Vec<Cell> = Vec::new();
    if reach == Reach::Cluster {
        cells.push(document.namespace().unwrap_or_default().into());
    }
    cells.extend([
        inline(&document.spec.document_type, 63).into(),
        Cell::from(document.name_any()),
        inline(&seen_by(document), 200).into(),
        status.phase.map_or_else(|| "Draft".to_owned(), |phase| format!("{phase:?}")).into(),
        status.revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string()).into(),
        age(document.metadata.creation_timestamp.as_ref(), now).into(),
        status.digest.map_or_else(|| "-".to_owned(), |digest| short_digest(&inline(&digest, 80))).into(),
    ]);
    cells
}

/// Whose steps find it, in words.
fn seen_by(document: &Document) -> String {
    let spec = &document.spec;
    let text = |of: &Option<String>| of.clone().unwrap_or_default();
    match spec.scope {
        Scope::Namespace => "all runs".to_owned(),
        Scope::Session => format!("session {}", text(&spec.session)),
        Scope::Project => format!("project {}", text(&spec.project)),
        Scope::Workflow => format!("run {}", text(&spec.workflow)),
        Scope::Item => {
            let scope = text(&spec.scope_id);
            let keys = scope.split_once('/').map_or("", |(_, keys)| keys);
            format!("item {keys} of run {}", text(&spec.workflow))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden::Golden;
    use crate::cli::print::Format as Output;
    use serde_json::json;

    fn whose(session: Option<&str>) -> Whose {
        Whose { session: session.map(str::to_owned), project: None }
    }

    #[test]
    fn a_file_becomes_a_document_of_the_type_that_its_name_says() {
        for (file, told, content, expected) in [
            ("docs/brief.md", None, "# A", Ok(("brief", Format::Markdown))),
            ("a/epic-backlog.json", None, "{}", Ok(("epic-backlog", Format::Json))),
            ("idea.txt", Some("brief"), "x", Ok(("brief", Format::Text))),
            ("My Idea.md", None, "x", Err("rename the file, or say --type")),
            ("idea.md", Some("Brief"), "x", Err("\"Brief\" is no type")),
            ("lockstep-output.md", None, "x", Err("Lockstep's own")),
            ("brief.pdf", None, "x", Err("the format is not known")),
            ("brief.json", None, "{a", Err("is not valid JSON")),
        ] {
            match (spec_of(Path::new(file), told, &whose(None), content), expected) {
                (Ok(spec), Ok((kind, format))) => {
                    assert_eq!((spec.document_type.as_str(), spec.format), (kind, format), "{file}");
                    assert_eq!((spec.scope, spec.content.as_str()), (Scope::Namespace, content));
                }
                (Err(fault), Err(words)) => assert!(fault.text.contains(words), "{file}: {}", fault.text),
                (other, _) => panic!("{file}: {other:?}"),
            }
        }
        let large = "x".repeat(DOCUMENT_BYTES + 1);
        let fault = spec_of(Path::new("brief.md"), None, &whose(None), &large).expect_err("too large");
        assert!(fault.text.contains("at most 524288"), "{}", fault.text);
        let of_session = spec_of(Path::new("brief.md"), None, &whose(Some("s")), "x").expect("a document");
        assert_eq!((of_session.scope, of_session.session.as_deref()), (Scope::Session, Some("s")));
    }

    #[test]
    fn of_a_folder_those_that_can_be_documents_are_taken_in_order() {
        let folder = std::env::temp_dir().join(format!("lockstep-docs-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("more")).expect("a folder");
        for name in ["b.md", "a.json", ".hidden.md", "picture.png", "more/c.md"] {
            std::fs::write(folder.join(name), "{}").expect("a file");
        }
        let found = files(std::slice::from_ref(&folder)).map(|all| {
            all.iter().filter_map(|f| Some(f.file_name()?.to_string_lossy().into_owned())).collect::<Vec<_>>()
        });
        assert_eq!(found, Ok(vec!["a.json".to_owned(), "b.md".to_owned()]));
        std::fs::remove_dir_all(folder.join("more")).expect("it goes");
        std::fs::remove_file(folder.join("a.json"))
            .and_then(|()| std::fs::remove_file(folder.join("b.md")))
            .expect("gone");
        let none = files(std::slice::from_ref(&folder)).expect_err("no documents");
        assert!(none.code == Code::Usage && none.text.contains("has no file that ends in .md"), "{}", none.text);
        std::fs::remove_dir_all(&folder).expect("it goes");
    }

    #[test]
    fn doc_list_prints_this() {
        let document = |kind: &str, more: Value, status: Value| -> Document {
            let mut spec = json!({"type": kind, "scope": "Namespace", "format": "markdown", "content": "# Text"});
            spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document", "spec": spec, "status": status,
                "metadata": {"name": format!("{kind}-0123456789abcdef"), "namespace": "team-a", "creationTimestamp": "2026-11-21T10:00:00Z"}}))
            .expect("a document")
        };
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let published = |revision: i64| json!({"phase": "Published", "revision": revision, "digest": digest});
        let all = [
            document("brief", json!({"scope": "Session", "session": "spring"}), published(2)),
            document("law", json!({}), json!({"phase": "Superseded", "revision": 1, "digest": digest})),
            document(
                "plan",
                json!({"scope": "Item", "scopeId": "shop/E1", "workflow": "shop", "path": "plan"}),
                Value::Null,
            ),
            document("prices", json!({"scope": "Project", "project": "bikes\u{1b}[2J"}), published(1)),
        ];
        let now = "2026-11-21T10:30:00Z".parse().expect("a time");
        let none = RenderOptions::default();
        let looks = [
            ("", none),
            (", 120 columns in colours", RenderOptions { window: Some(120), colours: true }),
            (", 48 columns", RenderOptions { window: Some(48), colours: false }),
        ];
        let mut golden = Golden::new("doc");
        for (words, options) in looks {
            golden.add(&format!("doc list{words}"), &text(&all, Reach::Namespace, now, options));
        }
        golden.add("doc list -A", &text(&all, Reach::Cluster, now, none));
        for (word, format) in [("json", Output::Json), ("yaml", Output::Yaml), ("name", Output::Name)] {
            golden
                .add(&format!("doc list -o {word}"), &print::list_text(format, "Document", &all[..1]).expect("a text"));
        }
        golden.check();
    }
}
