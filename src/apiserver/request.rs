//! What a request asks, read from its path and its query.

use std::collections::BTreeMap;

use http::{Method, Uri};
use kube::core::response::StatusCause;

use super::kind::{Kind, Part};
use super::object::Key;
use super::selector::{Selection, fields_of, labels_of};
use super::status::{Refusal, Result, bad_request, invalid_options, no_such_path, plain};

/// The verb, with what it is about.
#[derive(Debug)]
pub enum Call {
    /// As it is now; which version it must have come to is not read.
    Get(Key),
    List(Kind, Selection, Page),
    Watch(Kind, Selection, Watch),
    /// The name stands in the body.
    Create {
        kind: Kind,
        namespace: String,
    },
    Replace(Key, Part),
    Patch(Key, Part),
    Delete(Key),
    /// A question that stores nothing: who holds a token, who may do what.
    Review(String),
}

/// Which part of a list is wanted, and as of when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The most objects; none for all of them.
    pub limit: Option<usize>,
    /// Of an earlier page: its version, and the namespace and name of its last object.
    pub after: Option<(u64, String, String)>,
    /// The version that the list must have exactly.
    pub exactly: Option<u64>,
    /// The version that the list must have come to.
    pub at_least: Option<u64>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With all that is there.
    #[default]
    Everything,
    /// With all that is there, which must have come to that version; a bookmark says where that ends and what happens begins.
    List { at_least: u64 },
    /// With what happens from now on.
    Now,
    /// With what happened after a version.
    After(u64),
}

/// From where on a watch tells, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    pub start: Start,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
}

/// How `resourceVersion` is meant, and whether a watch begins with all that is there.
const MATCH: &str = "resourceVersionMatch";
const INITIAL_EVENTS: &str = "sendInitialEvents";
const EXACT: &str = "Exact";
const AT_LEAST: &str = "NotOlderThan";

/// The parameters of a URI.
pub struct Query(BTreeMap<String, String>);

impl Query {
    pub fn of(uri: &Uri) -> Self {
        Self(form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| bad_request(&format!("invalid {name}: {text:?}"))),
        }
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    /// Whether nothing is to be stored.
    pub fn is_dry_run(&self) -> bool {
        self.text("dryRun") == "All"
    }

    fn selection(&self, namespace: &str) -> Result<Selection> {
        Ok(Selection {
            namespace: namespace.to_owned(),
            labels: labels_of(self.text("labelSelector"))?,
            fields: fields_of(self.text("fieldSelector"))?,
        })
    }

    fn page(&self) -> Result<Page> {
        self.check_list()?;
        let limit = self.number("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let after = match self.text("continue") {
            "" => None,
            token => Some(read_token(token).ok_or_else(|| bad_request("continue key is not valid"))?),
        };
        let version = self.number("resourceVersion")?.filter(|version| *version > 0);
        let is_exact = self.text(MATCH) == EXACT;
        let (exactly, at_least) = if is_exact { (version, None) } else { (None, version) };
        Ok(Page { limit, after, exactly, at_least })
    }

    fn watch(&self) -> Result<Watch> {
        self.check_watch()?;
        let version = self.number("resourceVersion")?.unwrap_or_default();
        let start = match (self.0.get(INITIAL_EVENTS).map(String::as_str), version) {
            (Some("false" | "0"), 0) => Start::Now,
            (None, 0) => Start::Everything,
            (Some("false" | "0") | None, after) => Start::After(after),
            (Some(_), at_least) => Start::List { at_least },
        };
        Ok(Watch {
            start,
            timeout_seconds: self.number("timeoutSeconds")?.filter(|seconds| *seconds > 0),
            bookmarks: self.is_set("allowWatchBookmarks"),
        })
    }

    /// Refuses what of the options of a list does not go together.
    fn check_list(&self) -> Result<()> {
        let (version, wanted) = (self.text("resourceVersion"), self.text(MATCH));
        let mut faults = Vec::new();
        if !wanted.is_empty() {
            if version.is_empty() {
                faults.push(forbidden(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            faults.extend(self.match_of_a_page());
            if ![EXACT, AT_LEAST].contains(&wanted) {
                faults.push(unsupported(wanted, &[EXACT, AT_LEAST, ""]));
            }
            if (wanted, version) == (EXACT, "0") {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                faults.push(forbidden(MATCH, why));
            }
        }
        if self.0.contains_key(INITIAL_EVENTS) {
            faults.push(forbidden(INITIAL_EVENTS, "sendInitialEvents is forbidden for list"));
        }
        if faults.is_empty() { Ok(()) } else { Err(invalid_options(faults)) }
    }

    /// Refuses what of the options of a watch does not go together.
    fn check_watch(&self) -> Result<()> {
        let (begins, wanted) = (self.0.contains_key(INITIAL_EVENTS), self.text(MATCH));
        let mut faults = Vec::new();
        if begins && wanted != AT_LEAST {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            faults.push(forbidden(MATCH, why));
        }
        if !wanted.is_empty() {
            if !begins {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                faults.push(forbidden(MATCH, why));
            }
            if wanted != AT_LEAST {
                faults.push(unsupported(wanted, &[AT_LEAST]));
            }
            faults.extend(self.match_of_a_page());
        }
        if faults.is_empty() { Ok(()) } else { Err(invalid_options(faults)) }
    }

    fn match_of_a_page(&self) -> Option<StatusCause> {
        let is_page = !self.text("continue").is_empty();
        is_page.then(|| forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"))
    }
}

fn forbidden(field: &str, why: &str) -> StatusCause {
    let message = format!("Forbidden: {why}");
    StatusCause { reason: "FieldValueForbidden".to_owned(), message, field: field.to_owned() }
}

fn unsupported(wanted: &str, known: &[&str]) -> StatusCause {
    let known: Vec<String> = known.iter().map(|value| format!("{value:?}")).collect();
    let message = format!("Unsupported value: {wanted:?}: supported values: {}", known.join(", "));
    StatusCause { reason: "FieldValueNotSupported".to_owned(), message, field: MATCH.to_owned() }
}

/// What a client sends back to get the next page; it is nobody's business what stands in it.
pub fn token(version: u64, last: &Key) -> String {
    format!("{version}/{}/{}", last.namespace, last.name)
}

fn read_token(token: &str) -> Option<(u64, String, String)> {
    let mut parts = token.splitn(3, '/');
    Some((parts.next()?.parse().ok()?, parts.next()?.to_owned(), parts.next()?.to_owned()))
}

/// Where a path leads.
struct Target<'a> {
    kind: Kind,
    namespace: &'a str,
    name: Option<&'a str>,
    part: Part,
}

fn target(path: &str) -> Result<Target<'_>> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version) = match parts.first() {
        Some(&"api") if parts.len() >= 3 => ("", parts[1]),
        Some(&"apis") if parts.len() >= 4 => (parts.remove(1), parts[1]),
        _ => return Err(no_such_path()),
    };
    let rest = &parts[2..];
    // `/namespaces/x` alone is an object of its own.
    let (namespace, rest) = match rest {
        ["namespaces", namespace, inner @ ..] if !inner.is_empty() => (*namespace, inner),
        other => ("", other),
    };
    let (plural, name, part) = match rest {
        [plural] => (*plural, None, Part::Main),
        [plural, name] => (*plural, Some(*name), Part::Main),
        [plural, name, "status"] => (*plural, Some(*name), Part::Status),
        _ => return Err(no_such_path()),
    };
    let kind = Kind::find(group, version, plural).ok_or_else(no_such_path)?;
    let is_placed = kind.is_namespaced() || namespace.is_empty();
    let has_part = part == Part::Main || kind.has_status();
    if is_placed && has_part { Ok(Target { kind, namespace, name, part }) } else { Err(no_such_path()) }
}

/// The reviews that are served, by the end of their path.
const REVIEWS: [&str; 4] = ["tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews", "selfsubjectreviews"];

/// What is asked.
pub fn call(method: &Method, uri: &Uri, query: &Query) -> Result<Call> {
    let path = uri.path();
    let last = path.rsplit('/').next().unwrap_or_default();
    if REVIEWS.contains(&last) && *method == Method::POST {
        return Ok(Call::Review(last.to_owned()));
    }
    let Target { kind, namespace, name, part } = target(path)?;
    let Some(name) = name else {
        return match *method {
            Method::GET if query.is_set("watch") => Ok(Call::Watch(kind, query.selection(namespace)?, query.watch()?)),
            Method::GET => Ok(Call::List(kind, query.selection(namespace)?, query.page()?)),
            Method::POST => Ok(Call::Create { kind, namespace: namespace.to_owned() }),
            _ => Err(not_allowed()),
        };
    };
    if kind.is_namespaced() && namespace.is_empty() {
        return Err(no_such_path());
    }
    let key = Key::new(kind, namespace, name);
    match *method {
        Method::GET => Ok(Call::Get(key)),
        Method::PUT => Ok(Call::Replace(key, part)),
        Method::PATCH => Ok(Call::Patch(key, part)),
        Method::DELETE if part == Part::Main => Ok(Call::Delete(key)),
        _ => Err(not_allowed()),
    }
}

fn not_allowed() -> Refusal {
    plain(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, uri: &str) -> Result<Call> {
        let uri: Uri = uri.parse().expect("a URI");
        call(method, &uri, &Query::of(&uri))
    }

    #[test]
    fn paths_are_read() {
        let key = |kind, namespace: &str| Key::new(kind, namespace, "x");
        let status = read(&Method::PUT, "/apis/lockstep.dev/v1alpha1/namespaces/team/workflows/x/status");
        assert!(matches!(status, Ok(Call::Replace(k, Part::Status)) if k == key(Kind::Workflow, "team")));
        let pod = read(&Method::GET, "/api/v1/namespaces/team/pods/x?");
        assert!(matches!(pod, Ok(Call::Get(k)) if k == key(Kind::Pod, "team")));
        let namespace = read(&Method::DELETE, "/api/v1/namespaces/x");
        assert!(matches!(namespace, Ok(Call::Delete(k)) if k == key(Kind::Namespace, "")));
        let review = read(&Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews");
        assert!(matches!(review, Ok(Call::Review(what)) if what == "tokenreviews"));
        for (method, uri, code) in [
            (Method::GET, "/apis/apps/v1/deployments", 404),
            (Method::GET, "/api/v1/pods/x", 404),
            (Method::GET, "/api/v1/namespaces/team/configmaps/x/status", 404),
            (Method::DELETE, "/api/v1/namespaces/team/pods", 405),
            (Method::GET, "/api/v1/pods?limit=many", 400),
        ] {
            assert_eq!(read(&method, uri).expect_err("refused").code, code, "{uri}");
        }
    }

    #[test]
    fn queries_are_read() {
        let Ok(Call::List(Kind::Job, selection, page)) =
            read(&Method::GET, "/apis/batch/v1/jobs?labelSelector=a%3Db&limit=2&continue=7%2Fteam%2Fj")
        else {
            panic!("a list")
        };
        assert_eq!((selection.namespace.as_str(), selection.labels.to_string().as_str()), ("", "a=b"));
        assert_eq!(page, Page { limit: Some(2), after: Some((7, "team".into(), "j".into())), ..Page::default() });
        let uri = "/apis/batch/v1/namespaces/team/jobs?watch=true&resourceVersion=5&allowWatchBookmarks=true";
        let Ok(Call::Watch(Kind::Job, selection, watch)) = read(&Method::GET, uri) else { panic!("a watch") };
        assert_eq!(selection.namespace, "team");
        assert_eq!(watch, Watch { start: Start::After(5), timeout_seconds: None, bookmarks: true });
    }

    #[test]
    fn what_is_said_of_versions_is_read() {
        for (query, exactly, at_least) in [
            ("", None, None),
            ("resourceVersion=0", None, None),
            ("resourceVersion=5", None, Some(5)),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan", None, Some(5)),
            ("resourceVersion=5&resourceVersionMatch=Exact", Some(5), None),
        ] {
            let call = read(&Method::GET, &format!("/api/v1/pods?{query}"));
            let Ok(Call::List(_, _, page)) = call else { panic!("{query}: a list") };
            assert_eq!(page, Page { exactly, at_least, ..Page::default() }, "{query}");
        }
        let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        for (query, start) in [
            (String::new(), Start::Everything),
            ("resourceVersion=0".to_owned(), Start::Everything),
            ("resourceVersion=5".to_owned(), Start::After(5)),
            (initial.to_owned(), Start::List { at_least: 0 }),
            (format!("{initial}&resourceVersion=5"), Start::List { at_least: 5 }),
            (initial.replace("true", "false"), Start::Now),
            (format!("{}&resourceVersion=5", initial.replace("true", "false")), Start::After(5)),
        ] {
            let call = read(&Method::GET, &format!("/api/v1/pods?watch=true&timeoutSeconds=0&{query}"));
            let Ok(Call::Watch(_, _, watch)) = call else { panic!("{query}: a watch") };
            assert_eq!(watch, Watch { start, timeout_seconds: None, bookmarks: false }, "{query}");
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let requires = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        let unsupported = "Unsupported value: \"Exact\": supported values: \"NotOlderThan\"";
        for (query, faults) in [
            (
                "sendInitialEvents=true",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list".to_owned(),
            ),
            (
                "resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
                    .to_owned(),
            ),
            ("watch=true&sendInitialEvents=true", format!("resourceVersionMatch: {requires}")),
            ("watch=true&sendInitialEvents=false", format!("resourceVersionMatch: {requires}")),
            (
                "watch=true&sendInitialEvents=true&resourceVersionMatch=Exact",
                format!("[resourceVersionMatch: {requires}, resourceVersionMatch: {unsupported}]"),
            ),
        ] {
            let refusal = read(&Method::GET, &format!("/api/v1/pods?{query}")).expect_err("refused");
            assert_eq!((refusal.code, refusal.reason.as_str()), (422, "Invalid"), "{query}");
            assert_eq!(refusal.message, format!("ListOptions.meta.k8s.io \"\" is invalid: {faults}"), "{query}");
        }
    }
}
