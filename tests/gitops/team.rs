//! What a team commits: definitions, and runs. Without namespaces: Kustomization and Application say where it goes.

use super::ground::Ground;

/// Agents of which `writer` makes a draft, `worker` works and `breaker` fails. In real pods a shell does what tests/gitops/ground.rs
/// plays else; without nodes no scheduler is told of the pods.
pub fn agents(ground: &Ground) -> String {
    let agent = |name: &str, script: &str| {
        let scheduler = if ground.has_pods() { "" } else { "\n      schedulerName: nobody" };
        format!(
            "\
apiVersion: lockstep.dev/v1alpha1
kind: Agent
metadata: {{name: {name}}}
spec:
  timeoutSeconds: 60
  template:
    spec:{scheduler}
      securityContext: {{runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
      - name: agent
        image: lockstep-example-agents:dev
        imagePullPolicy: IfNotPresent
        command: [sh, -c, '{script}']
        resources: {{requests: {{cpu: 1m, memory: 8Mi}}, limits: {{memory: 64Mi}}}}
        securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
"
        )
    };
    let output = r#"echo "{\"by\": \"$STEP_ID\"}" >$LOCKSTEP_OUT/result.json"#;
    let all = [
        agent("writer", &format!("sleep 1; echo A draft by $STEP_ID >$LOCKSTEP_OUT/draft.md; {output}")),
        agent("worker", &format!("sleep 1; {output}")),
        agent("breaker", "sleep 1; exit 1"),
    ];
    all.join("---\n")
}

/// A template with two gates, the second not for whoever made the run. The note is a parameter's default, for changes that matter to nobody.
pub fn template(note: &str) -> String {
    format!(
        "\
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata:
  name: release
  annotations: {{kustomize.toolkit.fluxcd.io/substitute: disabled}}
spec:
  parametersSchema: {{type: object, properties: {{note: {{type: string, default: {note}}}}}}}
  steps:
  - name: draft
    agentId: writer
    produces: {{type: draft}}
    parameters: {{note: '${{ parameters.note }}'}}
    gate: {{}}
  - name: review
    agentId: worker
    documents: [draft]
    gate: {{fourEyes: true}}
  - name: publish
    agentId: worker
"
    )
}

/// A template of one step that fails.
pub const BROKEN: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata: {name: broken}
spec:
  steps:
  - {name: only, agentId: breaker, onFailure: Fail, retry: {maxAttempts: 1}}
";

/// A template of one step.
pub const SHORT: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata: {name: short}
spec:
  steps:
  - {name: only, agentId: worker}
";

/// Who approves is in Git, too.
pub const APPROVERS: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: leads}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: ann}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lockstep-approver}
";

/// A run of a template; more annotations as YAML lines are made of `key: value`.
pub fn run(name: &str, template: &str, annotations: &[&str]) -> String {
    let mut all = String::new();
    for line in annotations {
        all += &format!("    {line}\n");
    }
    let annotations = if all.is_empty() { String::new() } else { format!("  annotations:\n{all}") };
    format!(
        "\
apiVersion: lockstep.dev/v1alpha1
kind: Workflow
metadata:
  name: {name}
{annotations}spec:
  templateRef: {{name: {template}}}
"
    )
}

/// Something that is no concern of Lockstep's.
pub fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{value: '{value}'}}\n")
}

/// The definitions by file.
pub fn definitions(ground: &Ground) -> Vec<(String, String)> {
    [
        ("agents.yaml", agents(ground)),
        ("release.yaml", template("first")),
        ("broken.yaml", BROKEN.to_owned()),
        ("short.yaml", SHORT.to_owned()),
        ("approvers.yaml", APPROVERS.to_owned()),
    ]
    .map(|(file, text)| (format!("definitions/{file}"), text))
    .into()
}
