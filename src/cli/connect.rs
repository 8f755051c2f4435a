//! The cluster, as the command line and the kubeconfig name it.

use std::path::PathBuf;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, future};
use kube::api::{Api, ListParams, PartialObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

use super::fault::{Code, Fault};
use super::print::Format;
use super::text::near;
use super::text::quote;
use crate::api::name::CLI;
use crate::api::unreadable::Unreadable;
use crate::api::{StepRun, Workflow};
use crate::cluster::stored::{self, Listed, Stored};

#[derive(clap::Args, Clone, Debug)]
pub struct Global {
    /// Namespace; that of the context unless told
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t, hide_default_value = true)]
    pub output: Format,
    /// User to act as
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to act as; may be repeated, needs --as
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "as_user")]
    pub as_group: Vec<String>,
    /// How long one request may take, as 30s, 2m or 1h; 0 is for ever
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub request_timeout: Duration,
}

pub struct Connection {
    pub client: Client,
    pub namespace: String,
    pub output: Format,
    pub timeout: Duration,
    /// Whether another command reaches the same: not in `dev`, where all is in one process.
    pub is_reached: bool,
}

/// How far a list goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Namespace,
    Cluster,
}

/// Whether to look in all namespaces.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Everywhere {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

impl Everywhere {
    pub fn reach(self) -> Reach {
        if self.all_namespaces { Reach::Cluster } else { Reach::Namespace }
    }
}

impl Connection {
    pub async fn open(global: &Global) -> Result<Self, Fault> {
        let mut config = config(global).await?;
        if let Some(user) = &global.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(global.as_group.clone()).filter(|groups| !groups.is_empty());
        }
        config.headers.push((
            http::header::USER_AGENT,
            http::HeaderValue::from_static(concat!("lockstep-cli/", env!("CARGO_PKG_VERSION"))),
        ));
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|wrong| Fault::call("connect", &wrong))?;
        let (output, timeout) = (global.output, global.request_timeout);
        Ok(Self { client, namespace, output, timeout, is_reached: true })
    }

    /// The next command, ready to paste.
    pub fn hint(&self, verb: &str, target: &str) -> String {
        if !self.is_reached {
            return "what follows".to_owned();
        }
        let (namespace, target) = (quote(&self.namespace), quote(target));
        format!("kubectl lockstep -n {namespace} {verb} {target}")
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn reaching<K>(&self, reach: Reach) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match reach {
            Reach::Namespace => self.api(),
            Reach::Cluster => Api::all(self.client.clone()),
        }
    }

    /// One call, within the time that one may take. Watches do not go through here.
    pub async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Fault> {
        self.within(what, call).await?.map_err(|wrong| Fault::call(what, &wrong))
    }

    /// The same, for callers that tell the faults apart.
    pub async fn within<T>(&self, what: &str, call: impl Future<Output = T>) -> Result<T, Fault> {
        // The future of a request is large, and those of the verbs hold it.
        let call = Box::pin(call);
        if self.timeout.is_zero() {
            return Ok(call.await);
        }
        tokio::time::timeout(self.timeout, call).await.map_err(|_| {
            Fault::new(
                Code::Api,
                format!(
                    "cannot {what}: no answer within {}s; does the cluster answer? see --request-timeout",
                    self.timeout.as_secs()
                ),
            )
        })
    }

    /// One page of a list. What cannot be read is told on standard error, and the rest goes on.
    pub async fn list<K>(&self, what: &str, api: Api<K>, params: &ListParams) -> Result<Listed<K>, Fault>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let listed = self.call(what, stored::list(api, params)).await?;
        for one in &listed.unreadable {
            eprintln!("note: {}", left_out::<K>(one));
        }
        Ok(listed)
    }

    /// The object of that name; one that cannot be read is a fault that says why.
    pub async fn read<K>(&self, what: &str, name: &str) -> Result<Option<K>, Fault>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let found = self.call(what, self.api::<Stored<K>>().get_opt(name)).await?;
        found.map(|one| parsed(what, one)).transpose()
    }

    /// The same of an object that was there a moment ago.
    pub async fn read_known<K>(&self, what: &str, name: &str) -> Result<K, Fault>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let gone = || Fault::missing(format!("cannot {what}: the {} {name} is gone", K::kind(&())));
        self.read(what, name).await?.ok_or_else(gone)
    }

    /// The same of an object that need not be seen; nothing where its reader has no right to. One that is not there is a fault.
    pub async fn read_if_allowed<K>(&self, kind: &str, name: &str) -> Result<Option<K>, Fault>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let what = format!("read the {kind}");
        match self.within(&what, self.api::<Stored<K>>().get_opt(name)).await? {
            Ok(Some(one)) => parsed(&what, one).map(Some),
            Ok(None) => Err(self.unknown::<K>(kind, name).await),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(wrong) => Err(Fault::call(&what, &wrong)),
        }
    }

    /// Watches, with back-off. What cannot be read is told as in lists.
    pub fn watch<K>(&self, config: watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let events = stored::watch(self.api::<K>(), config).default_backoff();
        let readable = events.filter_map(|event| {
            let event = match event.map(stored::readable) {
                Ok(Ok(event)) => Some(Ok(event)),
                Ok(Err(one)) => {
                    eprintln!("note: {}", left_out::<K>(&one));
                    None
                }
                Err(wrong) => Some(Err(wrong)),
            };
            future::ready(event)
        });
        readable.boxed()
    }

    /// The run of that name; near names where there is none.
    pub async fn workflow(&self, name: &str) -> Result<Workflow, Fault> {
        match self.read::<Workflow>(&format!("read the run {name}"), name).await? {
            Some(run) => Ok(run),
            None => Err(self.unknown::<Workflow>("run", name).await),
        }
    }

    /// "There is no such object", with what may have been meant.
    pub async fn unknown<K>(&self, kind: &str, name: &str) -> Fault
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let (api, params) = (self.api::<PartialObjectMeta<K>>(), ListParams::default());
        let known: Vec<String> = match self.call("look for others", stored::list(api, &params)).await {
            Ok(list) => list.items.into_iter().filter_map(|o| o.metadata.name).collect(),
            Err(_) => Vec::new(),
        };
        let remedy = match near(name, &known).as_slice() {
            [] if kind == "template" => "see kubectl get workflowtemplates, or choose another -n".to_owned(),
            [] => "see kubectl lockstep list -A, or choose another -n".to_owned(),
            close => format!("did you mean {}?", close.join(" or ")),
        };
        Fault::missing(format!("no {kind} {name} in namespace {}; {remedy}", self.namespace))
    }

    /// The steps of a run, in the order of making.
    pub async fn step_runs(&self, run: &str) -> Result<Vec<StepRun>, Fault> {
        let params = ListParams::default().fields(&steps_of(run));
        Ok(self.list("list the steps", self.api::<StepRun>(), &params).await?.items)
    }
}

/// What was read; what cannot be parsed is a fault that names it.
pub fn parsed<K: Resource<DynamicType = ()>>(what: &str, one: Stored<K>) -> Result<K, Fault> {
    one.0.map_err(|one| Fault::new(Code::Api, format!("cannot {what}: {}", unreadable::<K>(&one))))
}

/// What cannot be read, and why.
fn unreadable<K: Resource<DynamicType = ()>>(one: &Unreadable) -> String {
    let (namespace, name) = one.place();
    let (kind, fault) = (K::kind(&()), super::text::inline(&one.fault, 1024));
    let look = format!("kubectl -n {} get {} {} -o yaml", quote(&namespace), K::plural(&()), quote(&name));
    format!("the {kind} {name} cannot be read: {fault}; see {look}")
}

fn left_out<K: Resource<DynamicType = ()>>(one: &Unreadable) -> String {
    format!("{}; it is left out here", unreadable::<K>(one))
}

/// Field selector of the steps of a run.
pub fn steps_of(run: &str) -> String {
    format!("spec.workflow.name={run}")
}

pub fn post() -> PostParams {
    PostParams { field_manager: Some(CLI.to_owned()), ..PostParams::default() }
}

pub async fn config(global: &Global) -> Result<Config, Fault> {
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let wrong = |why: String| {
        Fault::usage(format!(
            "cannot use the kubeconfig: {}; see --kubeconfig, --context and kubectl config get-contexts",
            super::text::inline(&why, 512)
        ))
    };
    if let Some(file) = &global.kubeconfig {
        let read = Kubeconfig::read_from(file).map_err(|why| wrong(why.to_string()))?;
        return Config::from_custom_kubeconfig(read, &options).await.map_err(|why| wrong(why.to_string()));
    }
    if global.context.is_some() {
        return Config::from_kubeconfig(&options).await.map_err(|why| wrong(why.to_string()));
    }
    Config::infer().await.map_err(|why| wrong(why.to_string()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let number: u64 = digits.parse().map_err(|_| "write it as 30s, 2m or 1h".to_owned())?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write it as 30s, 2m or 1h".to_owned()),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{DocumentSpec, WorkflowTemplate};
    use crate::apiserver::{self, ApiServer, Key, Kind, Registry, Writer};
    use crate::decide::document;

    fn plugin() -> (ApiServer, Connection) {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "plugin".to_owned());
        let server = ApiServer::new(registry, "ann");
        let (namespace, timeout) = ("team".to_owned(), Duration::from_secs(10));
        let client = server.client("team");
        let on = Connection { client, namespace, output: Format::default(), timeout, is_reached: true };
        (server, on)
    }

    fn make(server: &ApiServer, kind: Kind, name: &str, spec: &Value) {
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.name(), "spec": spec,
            "metadata": {"name": name, "namespace": "team"}});
        let (key, by) = (Key::new(kind, "team", name), Writer { user: "ann", is_dry_run: false });
        server.with(|registry| registry.create(&key, object, by)).expect("it is made");
    }

    fn deep() -> Value {
        (0..150).fold(json!(1), |inner, _| json!({"a": inner}))
    }

    /// Of each verb that reads one object by its name.
    #[tokio::test]
    async fn an_object_that_cannot_be_read_is_named_with_the_reason() {
        let (server, on) = plugin();
        let spec =
            DocumentSpec { document_type: "brief".to_owned(), content: "x".to_owned(), ..DocumentSpec::default() };
        let name = document::put_name(&spec, 0);
        let wide = json!({"type": "brief", "scope": "Namespace", "format": "text", "content": "x", "attempt": 3_000_000_000_u32});
        make(&server, Kind::Document, &name, &wide);
        let fault = super::super::doc::put_one(&on, spec).await.expect_err("it cannot be read").text;
        let expected = format!("cannot read the document: the Document {name} cannot be read: spec.attempt: ");
        assert!(fault.starts_with(&expected), "{fault}");
        make(&server, Kind::WorkflowTemplate, "flow", &json!({"parametersSchema": deep(), "steps": []}));
        let read = on.read_if_allowed::<WorkflowTemplate>("template", "flow").await;
        let fault = read.expect_err("it cannot be read").text;
        let expected = "cannot read the template: the WorkflowTemplate flow cannot be read: spec.parametersSchema: ";
        assert!(fault.starts_with(expected), "{fault}");
        let gone = on.read_known::<WorkflowTemplate>("read the template", "other").await.expect_err("there is none");
        assert_eq!(gone.text, "cannot read the template: the WorkflowTemplate other is gone");
    }

    #[tokio::test]
    async fn lists_go_on_beside_what_cannot_be_read() {
        let (server, on) = plugin();
        let run = |parameters: Value| json!({"parameters": parameters, "steps": [{"name": "a", "agentId": "x"}]});
        make(&server, Kind::Workflow, "deep", &run(deep()));
        make(&server, Kind::Workflow, "fine", &run(json!({"a": 1})));
        let listed =
            on.list("list", on.reaching::<Workflow>(Reach::Cluster), &ListParams::default()).await.expect("a list");
        assert_eq!((listed.items.len(), listed.unreadable.len()), (1, 1));
        assert!(on.workflow("fine").await.is_ok());
        let fault = on.workflow("deep").await.expect_err("it cannot be read").text;
        assert!(
            fault.starts_with(
                "cannot read the run deep: the Workflow deep cannot be read: spec.parameters: nests 150 levels"
            ),
            "{fault}"
        );
        let missing = on.workflow("fin").await.expect_err("there is none").text;
        assert!(missing.contains("did you mean fine?"), "{missing}");
        let runs: Vec<String> =
            super::super::complete::runs(&on, "").await.expect("names").into_iter().map(|(name, _)| name).collect();
        assert_eq!(runs, ["fine"]);
        let mut events = on.watch::<Workflow>(watcher::Config::default());
        let mut seen = Vec::new();
        while let Some(Ok(event)) = events.next().await {
            match event {
                Event::InitApply(run) => seen.push(run.metadata.name.unwrap_or_default()),
                Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(seen, ["fine"]);
    }

    #[test]
    fn times_are_written_as_for_kubectl() {
        let table = [
            ("30s", Some(30)),
            ("2m", Some(120)),
            ("1h", Some(3600)),
            ("5", Some(5)),
            ("0", Some(0)),
            ("x", None),
            ("5d", None),
            ("-1s", None),
            ("", None),
        ];
        for (text, seconds) in table {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), seconds, "{text}");
        }
    }
}
