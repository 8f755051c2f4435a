//! What agents were told: every agent of these tests sends its `context.json` here before it works, and a test's namespace closes
//! only if each of them keeps the contract that docs/ publish.

#![expect(clippy::expect_used, reason = "without a port nothing can be tested")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Result, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use serde_json::Value;

use crate::support::{Space, context};

/// How many came from a namespace, and what is wrong with them.
type Told = BTreeMap<String, (usize, Vec<String>)>;
type Book = &'static Mutex<Told>;

static TOLD: Mutex<Told> = Mutex::new(BTreeMap::new());

/// The port on which this process listens, at every address: pods reach it at that of their node.
static PORT: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("it does not block");
    // Each test has a runtime of its own, which ends with it.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let routes = Router::new().route("/{namespace}", post(take)).with_state(&TOLD as Book);
            axum::serve(listener, routes).await.expect("it serves");
        });
    });
    port
});

async fn take(State(book): State<Book>, Path(namespace): Path<String>, text: String) {
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let (count, faults) = book.entry(namespace).or_default();
    *count += 1;
    faults.extend(context(&text).err().map(|fault| format!("{fault:#}")));
}

/// The lines of a script that send it; a pod in which there is none, or which is not told of its node, has nothing to send.
pub fn told() -> String {
    format!(
        r#"[ ! -f "$LOCKSTEP_IN/context.json" ] || [ -z "$NODE" ] || wget -q -O /dev/null --post-file "$LOCKSTEP_IN/context.json" "http://$NODE:{}/$NAMESPACE""#,
        *PORT
    )
}

impl Space {
    /// All that agents were told in this namespace kept the contract, and whoever reported has sent it.
    pub async fn contexts(&self) -> Result<()> {
        let agents = self.get(&self.ours("agents")).await?;
        // A container that is left as it is has none.
        let tells = |agent: &&Value| {
            let template = agent["spec"]["template"].to_string();
            template.contains("--post-file")
                && template.contains("status.hostIP")
                && agent["spec"]["protocol"] != "None"
        };
        let tell: Vec<&Value> =
            agents["items"].as_array().into_iter().flatten().filter(tells).map(|a| &a["metadata"]["name"]).collect();
        let step_runs = self.get(&self.ours("stepruns")).await?;
        let reported =
            |step: &Value| !step["status"]["agent"]["report"].is_null() && tell.contains(&&step["spec"]["agentId"]);
        let reports = step_runs["items"].as_array().into_iter().flatten().filter(|step| reported(step)).count();
        let (count, faults) = {
            let book = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
            book.get(&self.namespace).cloned().unwrap_or_default()
        };
        ensure!(faults.is_empty(), "{} of {count} contexts break the contract: {}", faults.len(), faults[0]);
        ensure!(count >= reports, "{count} contexts came of {reports} steps that reported");
        Ok(())
    }
}
