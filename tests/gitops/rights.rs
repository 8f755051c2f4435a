//! Who may do what: the very files that docs/gitops.md recommends, with this test's namespaces in place of those that they name.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::ground::Ground;

/// The namespace's accounts and people, as a platform team makes them.
pub const TEAM: &str = "examples/gitops/team/rights.yaml";
/// Argo CD's own rights.
pub const ARGO: &str = "charts/lockstep/gitops/argocd/rights.yaml";

/// What the stories start; what is not named here the tools may not.
const TEMPLATES: [&str; 7] = ["release", "broken", "short", "human", "asks", "release-notes", "nightly-notes"];

/// The objects of a file of the repository.
pub fn documents(file: &str) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).with_context(|| file.to_owned())?;
    let all: Vec<Value> = text.split("\n---\n").map(serde_saphyr::from_str).collect::<std::result::Result<_, _>>()?;
    ensure!(all.iter().all(Value::is_object), "{file} holds something else than objects");
    Ok(all)
}

/// Puts other namespaces in the place of those that are named.
pub fn moved(value: &mut Value, namespaces: &[(&str, &str)]) {
    match value {
        Value::Object(all) => {
            for (key, inner) in all {
                let to = namespaces.iter().find(|(from, _)| key == "namespace" && inner == from);
                match to {
                    Some((_, to)) => *inner = json!(to),
                    None => moved(inner, namespaces),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| moved(inner, namespaces)),
        _ => {}
    }
}

impl Ground {
    /// Gives the rights of a file. What is not in a namespace gets a name of this test's own.
    pub async fn rights(&self, file: &str, namespaces: &[(&str, &str)]) -> Result<()> {
        let mut all = documents(file)?;
        let own: Vec<Value> =
            all.iter().filter(|d| d["kind"] == "ClusterRole").map(|d| d["metadata"]["name"].clone()).collect();
        let named = |name: &Value| json!(format!("{}-{}", self.namespace, name.as_str().unwrap_or_default()));
        for object in &mut all {
            moved(object, namespaces);
            for rule in object["rules"].as_array_mut().into_iter().flatten() {
                if rule["verbs"] == json!(["run"]) && rule.get("resourceNames").is_some() {
                    rule["resourceNames"] = json!(TEMPLATES);
                }
            }
            if object["roleRef"]["kind"] == "ClusterRole" && own.contains(&object["roleRef"]["name"]) {
                object["roleRef"]["name"] = named(&object["roleRef"]["name"]);
            }
            if object["metadata"]["namespace"].is_null() {
                object["metadata"]["name"] = named(&object["metadata"]["name"]);
            }
            self.give(object).await?;
        }
        Ok(())
    }

    /// Makes one object of those kinds.
    pub async fn give(&self, object: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let core = format!("/api/v1/namespaces/{namespace}");
        let within = format!("{rbac}/namespaces/{namespace}");
        let path = match object["kind"].as_str().unwrap_or_default() {
            "ServiceAccount" => format!("{core}/serviceaccounts"),
            "Role" => format!("{within}/roles"),
            "RoleBinding" => format!("{within}/rolebindings"),
            "ClusterRole" => format!("{rbac}/clusterroles"),
            "ClusterRoleBinding" => format!("{rbac}/clusterrolebindings"),
            // It is there, with other settings.
            "ConfigMap" => {
                return self.merge(&format!("{core}/configmaps/{name}"), object).await.map(|_| ());
            }
            "AppProject" => format!("/apis/argoproj.io/v1alpha1/namespaces/{namespace}/appprojects"),
            "Kustomization" => format!("/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{namespace}/kustomizations"),
            kind => anyhow::bail!("the tests make no {kind}"),
        };
        self.post(&path, object).await?;
        if namespace.is_empty() {
            self.made(format!("{path}/{name}"));
        }
        Ok(())
    }

    /// A Role of a ServiceAccount, or of a person, in a namespace.
    pub async fn may(&self, namespace: &str, role: &str, who: &Value, rules: Value) -> Result<()> {
        let api = "rbac.authorization.k8s.io/v1";
        let metadata = json!({"name": role, "namespace": namespace});
        self.give(&json!({"apiVersion": api, "kind": "Role", "metadata": metadata, "rules": rules})).await?;
        self.bound(namespace, role, who, &json!({"kind": "Role", "name": role})).await
    }

    pub async fn bound(&self, namespace: &str, name: &str, who: &Value, role: &Value) -> Result<()> {
        let mut role = role.clone();
        role["apiGroup"] = json!("rbac.authorization.k8s.io");
        self.give(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace}, "subjects": [who], "roleRef": role}))
            .await
    }

    /// What the repositories of the stories hold beside the kinds of Lockstep: things that are no concern of Lockstep's, and who
    /// approves, for which docs/gitops.md has the last three rules.
    pub async fn beside(&self) -> Result<()> {
        let rules = json!([
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch", "delete"]},
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["rolebindings"], "verbs": ["get", "create", "update", "patch", "delete"]},
            {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["lockstep-approver"],
                "verbs": ["bind"]}
        ]);
        self.may(&self.namespace, "beside", &service_account(&self.namespace, "gitops"), rules).await
    }

    /// Who installs the chart: an account of its own with all rights, which the controller may act as.
    pub async fn installer(&self, controller: &Value) -> Result<()> {
        let name = "installer";
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": self.namespace}});
        self.give(&account).await?;
        self.give(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("{}-{name}", self.namespace)},
            "subjects": [service_account(&self.namespace, name)],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}}))
            .await?;
        let rules = json!([{"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": [name], "verbs": ["impersonate"]}]);
        self.may(&self.namespace, "act-as-installer", controller, rules).await
    }
}

pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
}

pub fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name})
}
