//! The cluster, as the command line and the kubeconfig name it.

use std::path::PathBuf;
use std::time::Duration;

use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

use super::fault::{Code, Fault};
use super::print::Format;
use super::text::near;
use super::text::quote;
use crate::api::name::CLI;
use crate::api::{StepRun, Workflow};

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

    /// The run of that name; near names where there is none.
    pub async fn workflow(&self, name: &str) -> Result<Workflow, Fault> {
        let api = self.api::<Workflow>();
        match self.call(&format!("read the run {name}"), api.get_opt(name)).await? {
            Some(run) => Ok(run),
            None => Err(self.unknown::<Workflow>("run", name).await),
        }
    }

    /// "There is no such object", with what may have been meant.
    pub async fn unknown<K>(&self, kind: &str, name: &str) -> Fault
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let known: Vec<String> =
            match self.call("look for others", self.api::<K>().list_metadata(&ListParams::default())).await {
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
        let list = self.call("list the steps", self.api::<StepRun>().list(&params)).await?;
        Ok(list.items)
    }
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
    use super::*;

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
