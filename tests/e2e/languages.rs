//! The example agent in four languages, in real pods: all make the same bytes as they make without a cluster (`tests/dev/agents.rs`). Its
//! image is made of what this machine has, without a registry (`make example-image`).

use anyhow::{Context as _, Result, ensure};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{Space, yaml};

/// In its image, beside the others.
const COMMANDS: [(&str, &[&str]); 4] = [
    ("python", &["python3", "/agents/python/agent.py"]),
    ("node", &["node", "/agents/node/agent.mjs"]),
    ("go", &["/agents/go/agent"]),
    ("shell", &["/agents/shell/agent"]),
];

fn file(name: &str) -> Result<String> {
    let path = format!("{}/examples/agents/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).with_context(|| path.clone())
}

#[tokio::test]
async fn the_example_makes_the_same_in_every_language() -> Result<()> {
    let space = Space::open("languages").await?;
    let agent = yaml(&file("agent.yaml")?)?.pop().context("an Agent")?;
    for (language, command) in COMMANDS {
        let mut agent = agent.clone();
        agent["metadata"]["name"] = json!(language);
        agent["spec"]["template"]["spec"]["containers"][0]["command"] = json!(command);
        space.post(&space.ours("agents"), &agent).await?;
        let step = json!({"name": "outline", "agentId": language, "parameters": {"depth": 3},
            "produces": {"type": "outline", "format": "markdown"}});
        let brief = json!({"type": "brief", "format": "markdown", "content": file("brief.md")?});
        space.run(language, &json!({"onFailure": "Fail", "documents": [brief], "steps": [step]})).await?;
    }
    for (language, _) in COMMANDS {
        space.phase(language, Phase::Completed).await?;
        let status = space.step_run(language, "outline").await?.and_then(|s| s.status).context("no StepRun")?;
        let output =
            status.agent.as_ref().and_then(|agent| agent.report.as_ref()?.output.clone()).context("no output")?;
        let output: Value = serde_json::from_str(&output)?;
        let expected = json!({"title": "Second Spin: \"used\" bikes & more", "headings": 5, "words": 55});
        ensure!(output == expected, "{language}: {output}");
        let outlines = space.documents(language, "outline").await?;
        let outline = &outlines.first().context("no document")?.spec.content;
        ensure!(*outline == file("outline.md")?, "{language}: {outline}");
    }
    space.close().await
}
