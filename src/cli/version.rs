//! `version`: of this plugin, of the cluster, of the operator in it.

#![expect(clippy::disallowed_macros, reason = "the output of -o json")]

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::print::{Format, put};
use super::text::inline;

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
    if format.is_text() {
        for (name, value) in lines {
            put(&format!("{name:<12}{value}\n"))?;
        }
        return Ok(Code::Done);
    }
    let value = lines.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    super::print::plain(format, &serde_json::Value::Object(value))?;
    Ok(Code::Done)
}

async fn kinds(on: &Connection) -> Result<String, Fault> {
    let ask = on.client.list_api_group_resources("lockstep.dev/v1alpha1");
    match on.within("ask for the kinds", ask).await? {
        Ok(list) => {
            let names: Vec<String> =
                list.resources.into_iter().map(|r| r.name).filter(|name| !name.contains('/')).collect();
            Ok(inline(&format!("lockstep.dev/v1alpha1: {}", names.join(", ")), 400))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok("not installed".to_owned()),
        Err(wrong) => Err(Fault::call("ask for the kinds", &wrong)),
    }
}

/// Where it can be seen: reading Deployments everywhere is not everyone's right.
async fn operator(on: &Connection) -> Result<String, Fault> {
    let api: Api<Deployment> = Api::all(on.client.clone());
    let params = ListParams::default().labels("app.kubernetes.io/name=lockstep");
    let found = match on.within("look for the operator", api.list(&params)).await? {
        Ok(found) => found.items,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Ok("not visible to you".to_owned());
        }
        Err(wrong) => return Err(Fault::call("look for the operator", &wrong)),
    };
    let one = |deployment: &Deployment| {
        let version = deployment.labels().get("app.kubernetes.io/version");
        let spec = deployment.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        let image = spec.and_then(|s| s.containers.first()).and_then(|c| c.image.clone()).unwrap_or_default();
        let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas);
        inline(
            &format!(
                "{} ({image}), {}/{}, {} ready",
                version.map_or("unknown", String::as_str),
                deployment.namespace().unwrap_or_default(),
                deployment.name_any(),
                ready.unwrap_or(0)
            ),
            400,
        )
    };
    let all: Vec<String> = found.iter().map(one).collect();
    Ok(if all.is_empty() { "not found".to_owned() } else { all.join("; ") })
}
