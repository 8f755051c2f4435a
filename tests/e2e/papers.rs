//! The commands of README, LOCAL_DEVELOPMENT and docs, run as they stand there: README's in their order, all others against a
//! run that waits. What would change the installation, or decide, is a dry run by the API server. Targets of make and the
//! YAML of the pages have tests of their own.

use std::fs;

use crate::causes::shell;
use crate::support::Space;
use anyhow::{Context as _, Result, ensure};
use lockstep::api::workflow::Phase;

/// All but docs/gitops.md, whose commands are for a cluster with Argo CD, or take an installation over from Helm.
const PAGES: [&str; 8] = [
    "LOCAL_DEVELOPMENT.md",
    "docs/agents.md",
    "docs/gates.md",
    "docs/http-api.md",
    "docs/operations.md",
    "docs/triggers.md",
    "docs/troubleshooting.md",
    "docs/workflows.md",
];
/// What a page leaves open, and what stands for it here.
const OPEN: [(&str, &str); 12] = [
    ("RUN/STEP", "shop/discovery"),
    ("-n TEAM", ""),
    ("-n team-a", ""),
    ("-n team ", ""),
    ("REGISTRY/", "localhost/"),
    ("--user=NAME", "--user=ann"),
    ("--user NAME", "--user ann"),
    ("-f shop", "shop"),
    ("> run.json", "> /dev/null"),
    ("> ca.crt", "> /dev/null"),
    ("trigger pull-requests", "trigger ideas"),
    // Its reader has a folder of that name; ours is another.
    ("put docs/", "put examples/product-discovery/brief.md"),
];
/// Verbs of kubectl that change something.
const CHANGES: [&str; 5] = ["annotate", "apply", "create", "delete", "set"];

#[derive(Debug)]
struct Command {
    place: String,
    words: String,
}

/// The lines of kubectl and helm in blocks without a language, without their comments.
fn commands(page: &str) -> Result<Vec<Command>> {
    let text = fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).context(page.to_owned())?;
    let (mut found, mut is_shell, mut is_block): (Vec<Command>, bool, bool) = (Vec::new(), false, false);
    for (at, line) in text.replace("\\\n", "  ").lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            (is_block, is_shell) = (!is_block, !is_block && language.is_empty());
        } else if line.starts_with("kubectl lockstep dev ") {
            // Those need no cluster: `tests/dev/papers.rs` runs them.
        } else if line.ends_with(" &") {
            // It would go on in the background when all is over.
        } else if is_shell && (line.starts_with("kubectl ") || line.starts_with("helm ")) {
            let words = line.split("  #").next().unwrap_or_default().trim().to_owned();
            found.push(Command { place: format!("{page}:{}", at + 1), words });
        }
    }
    Ok(found)
}

/// A shell in a namespace, as somebody has it who follows the pages there.
struct Shell {
    kubeconfig: String,
    /// The StepRun that waits, and the digest of what it shows.
    step_run: String,
    review: String,
    /// What the pages export, once it is there.
    exports: Vec<String>,
}

impl Shell {
    async fn open(space: &Space) -> Result<Self> {
        let kubeconfig = std::env::temp_dir().join(format!("{}.kubeconfig", space.namespace)).display().to_string();
        let ns = &space.namespace;
        shell(&format!(
            "kubectl config view --raw > {kubeconfig} && KUBECONFIG={kubeconfig} kubectl config set-context --current --namespace={ns}"
        ))
        .await?;
        Ok(Self { kubeconfig, step_run: String::new(), review: String::new(), exports: Vec::new() })
    }

    /// Waits for a gate: what the pages call NAME is its StepRun from now on.
    async fn meet(&mut self, space: &Space, run: &str, step: &str) -> Result<()> {
        let waits = space.gate(run, step).await?;
        self.step_run = waits.metadata.name.context("a name")?;
        self.review = waits.status.and_then(|s| s.gate).context("a gate")?.output_digest;
        Ok(())
    }

    /// The Triggers of the pages, and an account that publishes to them: what makes these is a dry run there.
    async fn publisher(&mut self, space: &Space) -> Result<()> {
        space.apply("triggers", &["agent.yaml", "triggers.yaml"]).await?;
        // Of another name: the page's own commands make one in a dry run, which an account that is there would refuse.
        space.kubectl("create serviceaccount sender").await?;
        space.bind("ServiceAccount", "sender", "lockstep-edit").await?;
        space.kubectl("wait trigger/ideas --for=condition=Ready --timeout=60s").await?;
        let page = fs::read_to_string(format!("{}/LOCAL_DEVELOPMENT.md", env!("CARGO_MANIFEST_DIR")))?;
        let exports = page.lines().filter(|line| line.starts_with("export LOCKSTEP_API_"));
        let url = std::env::var("LOCKSTEP_API_URL").ok();
        let kept = exports.filter(|line| url.is_none() || !line.contains("LOCKSTEP_API_URL"));
        self.exports = kept.map(|line| format!("{} && ", line.replace("publisher", "sender"))).collect();
        ensure!(!self.exports.is_empty(), "LOCAL_DEVELOPMENT.md says where events are sent");
        Ok(())
    }

    /// A line as somebody types it who knows what its capital letters stand for.
    async fn run(&self, command: &Command) -> Result<String> {
        let words = OPEN.iter().fold(command.words.clone(), |words, (open, here)| words.replace(open, here));
        let words = words.replace("steprun NAME", &format!("steprun {}", self.step_run));
        let words =
            words.replace("steprun=NAME", &format!("steprun={}", self.step_run)).replace("sha256:...", &self.review);
        let root = env!("CARGO_MANIFEST_DIR");
        let exports = if words.contains("lockstep trigger") { self.exports.concat() } else { String::new() };
        let said = shell(&format!("cd {root} && export KUBECONFIG={} && {exports}{words}", self.kubeconfig)).await;
        said.with_context(|| format!("{}: {words}", command.place))
    }
}

/// A dry run of what changes something; logs are read to their present end.
fn harmless(command: &Command) -> Command {
    let words = &command.words;
    let changes = words.split_whitespace().any(|word| CHANGES.contains(&word));
    let words = if words.starts_with("helm uninstall") {
        format!("{words} --dry-run")
    } else if words.starts_with("helm") {
        format!("{} --dry-run=server", words.replace("helm install", "helm upgrade --install"))
    } else if changes {
        format!("{words} --dry-run=server")
    } else {
        words.strip_suffix(" -f").unwrap_or(words).to_owned()
    };
    Command { place: command.place.clone(), words }
}

/// README's own run, from the first command to its end: nothing in it is a dry run but the installation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_is_followed_to_its_end() -> Result<()> {
    let space = Space::open("readme").await?;
    let mut shell = Shell::open(&space).await?;
    let all = commands("README.md")?;
    let begins =
        all.iter().position(|c| c.words.starts_with("kubectl apply")).context("README begins with kubectl apply")?;
    // What follows is about a file that its reader writes.
    let ends = all.iter().position(|c| c.words.contains("hello.yaml")).unwrap_or(all.len());
    ensure!(ends - begins >= 6, "README has a run from kubectl apply to its end: {all:?}");
    for command in &all[..begins] {
        shell.run(&harmless(command)).await?;
    }
    for command in &all[begins..ends] {
        let mut command = Command { place: command.place.clone(), words: command.words.clone() };
        if command.words.contains(" annotate ") {
            shell.meet(&space, "shop", "discovery").await?;
        }
        if command.words.contains("approve shop/epic-backlog") {
            shell.meet(&space, "shop", "epic-backlog").await?;
            // Nobody can be asked here.
            command.words.push_str(" --yes");
        }
        if command.words.ends_with("--until-wait") {
            command.words.push_str("; [ $? = 3 ]");
        }
        shell.run(&command).await?;
    }
    space.phase("shop", Phase::Completed).await?;
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_pages_work() -> Result<()> {
    let space = Space::open("pages").await?;
    let mut shell = Shell::open(&space).await?;
    space.apply_example().await?;
    let brief = Command {
        place: "here".to_owned(),
        words: "kubectl lockstep run default --name shop --doc brief=examples/product-discovery/brief.md".to_owned(),
    };
    shell.run(&brief).await?;
    shell.meet(&space, "shop", "discovery").await?;
    shell.publisher(&space).await?;
    let mut count = 0;
    for page in PAGES {
        // They begin a run of that name, as README does, or watch it to its end.
        let begins = |c: &Command| {
            c.words.contains("lockstep run default")
                || c.words.contains(" run --from")
                || c.words.ends_with("watch shop")
        };
        for command in commands(page)?.iter().filter(|c| !begins(c)) {
            shell.run(&harmless(command)).await?;
            count += 1;
        }
    }
    ensure!(count > 20, "only {count} commands were found in the pages");
    println!("{count} commands of the pages ran");
    ensure!(space.status("shop").await?.phase == Some(Phase::WaitingForAcceptance), "none of them decided anything");
    space.close().await
}
