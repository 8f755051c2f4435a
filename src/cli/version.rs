//! `version`: of this plugin, of the cluster, of the operator in it.

#![expect(clippy::disallowed_macros, reason = "the output of -o json")]

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::{Line, RenderOptions};
use super::print::{Format, put};
use super::text::{Style, inline};

/// Print the versions of this plugin, of the cluster and of the operator
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kubectl lockstep version\n  kubectl lockstep version --client -o json")]
pub struct Args {
    /// Only of this plugin; asks no cluster
    #[arg(long)]
    pub client: bool,
}

const OWN: &str = env!("CARGO_PKG_VERSION");

/// Without a cluster.
pub fn client(format: Format) -> Result<Code, Fault> {
    print(format, &[("client", OWN.to_owned())])
}

pub async fn run(on: &Connection) -> Result<Code, Fault> {
    let server = on.call("ask the cluster's version", on.client.apiserver_version()).await?;
    let lines = [
        ("client", OWN.to_owned()),
        ("kubernetes", inline(&server.git_version, 64)),
        ("kinds", kinds(on).await?),
        ("operator", operator(on).await?),
    ];
    print(on.output, &lines)
}

fn print(format: Format, lines: &[(&str, String)]) -> Result<Code, Fault> {
    put(&text(format, lines, RenderOptions::for_stdout())?)?;
    Ok(Code::Done)
}

pub fn text(format: Format, lines: &[(&str, String)], options: RenderOptions) -> Result<String, Fault> {
    if format.is_text() {
        let line = |(name, value): &(&str, String)| {
            Line::of(vec![(format!("{name:<12}"), Style::Bold), (value.clone(), Style::Plain)]).folded(options)
        };
        return Ok(lines.iter().map(line).collect());
    }
    let value = lines.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    super::print::plain_text(format, &serde_json::Value::Object(value))
}

async fn kinds(on: &Connection) -> Result<String, Fault> {
    let ask = on.client.list_api_group_resources("lockstep.dev/v1alpha1");
    match on.within("ask for the kinds", ask).await? {
        Ok(list) => {
            let names = list.resources.into_iter().map(|r| r.name).filter(|name| !name.contains('/'));
            // The API server lists them in any order, and in another one later.
            let names: Vec<String> = names.collect::<BTreeSet<_>>().into_iter().collect();
            Ok(inline(&format!("lockstep.dev/v1alpha1: {}", names.join(", ")), 400))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok("not installed".to_owned()),
        Err(wrong) => Err(Fault::call("ask for the kinds", &wrong)),
    }
}

/// How the chart labels the operator's Deployment, whatever the release is called.
const OPERATOR: &str = "app.kubernetes.io/name=lockstep-operator";
/// Where the documentation installs it.
const USUAL: &str = "lockstep-system";

/// The operator, wherever it is installed. Reading Deployments everywhere is not everyone's right: then it is looked for
/// where it usually is, and where the command line points.
async fn operator(on: &Connection) -> Result<String, Fault> {
    if let Some(found) = deployments(on, &Api::all(on.client.clone())).await? {
        return Ok(told(&found)
            .unwrap_or_else(|| format!("not found: no Deployment of this cluster has the label {OPERATOR}")));
    }
    let mut looked = vec![USUAL];
    if on.namespace != USUAL {
        looked.push(&on.namespace);
    }
    let mut readable = Vec::new();
    for namespace in looked {
        match deployments(on, &Api::namespaced(on.client.clone(), namespace)).await? {
            Some(found) if !found.is_empty() => return Ok(told(&found).unwrap_or_default()),
            Some(_) => readable.push(namespace),
            None => {}
        }
    }
    let hint = "you may not list Deployments in all namespaces; say with -n in which one it is installed, if you may list those";
    Ok(match readable.as_slice() {
        [] => format!("cannot be seen: {hint}"),
        some => format!("not in {}, elsewhere it cannot be seen: {hint}", some.join(" and ")),
    })
}

/// None where they may not be listed.
async fn deployments(on: &Connection, api: &Api<Deployment>) -> Result<Option<Vec<Deployment>>, Fault> {
    match on.within("look for the operator", api.list(&ListParams::default().labels(OPERATOR))).await? {
        Ok(found) => Ok(Some(found.items)),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(wrong) => Err(Fault::call("look for the operator", &wrong)),
    }
}

/// Version, image, place and health of each.
fn told(found: &[Deployment]) -> Option<String> {
    let one = |deployment: &Deployment| {
        let version = deployment.labels().get("app.kubernetes.io/version");
        let spec = deployment.spec.as_ref();
        let pod = spec.and_then(|s| s.template.spec.as_ref());
        let image = pod.and_then(|s| s.containers.first()).and_then(|c| c.image.clone()).unwrap_or_default();
        let wanted = spec.and_then(|s| s.replicas).unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let ready = status.ready_replicas.unwrap_or(0);
        let available = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == "Available");
        let why = available.filter(|c| ready == 0 && c.status != "True").and_then(|c| c.message);
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        inline(
            &format!(
                "{} ({image}), {}/{}, {ready} of {wanted} ready{why}",
                version.map_or("of unknown version", String::as_str),
                deployment.namespace().unwrap_or_default(),
                deployment.name_any(),
            ),
            600,
        )
    };
    let all: Vec<String> = found.iter().map(one).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_says_where_it_is_and_how_it_is() {
        let deployment = |replicas: i32, status: serde_json::Value| -> Deployment {
            let container = json!({"name": "operator", "image": "example/lockstep:1"});
            serde_json::from_value(json!({"metadata": {"name": "lockstep-operator", "namespace": "platform",
                "labels": {"app.kubernetes.io/version": "0.1.0"}},
                "spec": {"replicas": replicas, "selector": {}, "template": {"spec": {"containers": [container]}}}, "status": status}))
            .expect("a deployment")
        };
        let well = deployment(2, json!({"readyReplicas": 2}));
        let unavailable = json!({"type": "Available", "status": "False", "message": "Deployment does not have minimum availability."});
        let ill = deployment(1, json!({"conditions": [unavailable]}));
        assert_eq!(told(&[]), None);
        assert_eq!(
            told(&[well, ill]).as_deref(),
            Some(
                "0.1.0 (example/lockstep:1), platform/lockstep-operator, 2 of 2 ready; 0.1.0 (example/lockstep:1), platform/lockstep-operator, 0 of 1 ready: Deployment does not have minimum availability."
            )
        );
    }

    #[test]
    fn the_chart_labels_the_operator_as_it_is_looked_for() {
        let chart = include_str!("../../charts/lockstep/templates/operator.yaml");
        assert!(chart.contains(&OPERATOR.replace('=', ": ")), "{OPERATOR}");
    }
}
