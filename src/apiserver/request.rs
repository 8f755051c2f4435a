//! What a request asks, read from its path and its query.

use std::collections::BTreeMap;

use http::{Method, Uri};

use super::kind::Kind;
use super::object::Key;
use super::registry::Part;
use super::selector::{Selection, fields_of, labels_of};
use super::status::{Refusal, Result, bad_request, no_such_path, plain};

/// The verb, with what it is about.
#[derive(Debug)]
pub enum Call {
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
}

/// From where on a watch tells, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// None: it begins with all that is there.
    pub after: Option<u64>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
}

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
        let limit = self.number("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let after = match self.text("continue") {
            "" => None,
            token => Some(read_token(token).ok_or_else(|| bad_request("continue key is not valid"))?),
        };
        let is_exact = self.text("resourceVersionMatch") == "Exact";
        let exactly = if is_exact { self.number("resourceVersion")? } else { None };
        Ok(Page { limit, after, exactly })
    }

    fn watch(&self) -> Result<Watch> {
        Ok(Watch {
            after: self.number("resourceVersion")?.filter(|version| *version > 0),
            timeout_seconds: self.number("timeoutSeconds")?,
            bookmarks: self.is_set("allowWatchBookmarks"),
        })
    }
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
        assert_eq!(page, Page { limit: Some(2), after: Some((7, "team".into(), "j".into())), exactly: None });
        let uri = "/apis/batch/v1/namespaces/team/jobs?watch=true&resourceVersion=5&allowWatchBookmarks=true";
        let Ok(Call::Watch(Kind::Job, selection, watch)) = read(&Method::GET, uri) else { panic!("a watch") };
        assert_eq!(selection.namespace, "team");
        assert_eq!(watch, Watch { after: Some(5), timeout_seconds: None, bookmarks: true });
    }
}
