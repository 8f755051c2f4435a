//! What agents remember, with the gateway's and the shim's own processes against the API server; who may write it, and how.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockstep::api::{Memory, StepRun, name};
use lockstep::decide::memory::initial;
use serde_json::{Value, json};

use crate::gateway::{Gateway, attempt, run_shim};
use crate::plugin::ends;
use crate::policies::{Case, flood, owner};
use crate::support::{Ask, GATEWAY, OPERATOR, Team, Who, policies_whole, workflow};

const POLICY: &str = "lockstep-memory";
/// Writers of each sort, and how often each of them counts on.
const AT_ONCE: usize = 4;
const EACH: usize = 10;

/// As the operator makes it.
async fn made(team: &Team, agent: &str, session: &str, run_uid: &str) -> Result<Memory> {
    let spec = json!({"workflow": {"name": "shop", "uid": run_uid}, "path": "a", "agentId": agent, "parameters": "{}",
        "definition": {"revisionName": "r", "digest": "d"}, "inputDigest": "i", "scopeChain": []});
    let step_run = StepRun::new("s", serde_json::from_value(spec)?);
    let memory = initial(&step_run, session, &Time(Timestamp::UNIX_EPOCH));
    let made = team.operator.gets(&Ask::post(team.all("memories"), serde_json::to_value(&memory)?)).await?;
    Ok(serde_json::from_value(made)?)
}

fn path(team: &Team, agent: &str, session: &str) -> String {
    team.one("memories", &name::memory(agent, session))
}

/// One Memory with a key of people's, at revision 2.
pub async fn stage(team: &Team) -> Result<()> {
    made(team, "keeper", "spring", "").await?;
    let spec = json!({"revision": 2, "entries": {"note": {"value": "1", "revision": 2}}});
    team.bob.gets(&Ask::patch(path(team, "keeper", "spring"), json!({"spec": spec}))).await?;
    Ok(())
}

/// Requests that one rule of the policy refuses.
pub async fn cases(team: &Team) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |words: &'static str, who: &Who, ask: Ask| {
        cases.push(Case { policy: POLICY, words, who: who.clone(), ask, unstamped_only: false });
    };
    let (admin, bob) = (&team.admin, &team.bob);
    // Whatever RBAC says.
    let operator = Who::user(OPERATOR, &["system:masters"]).await?;
    let gateway = Who::user(GATEWAY, &["system:masters"]).await?;
    let run = team.admin.gets(&Ask::get(team.one("workflows", "making"))).await?;
    let to = |patch: Value| Ask::patch(path(team, "keeper", "spring"), patch);
    let spec = |spec: Value| to(json!({"spec": spec}));
    let entry = |revision: i64| json!({"value": "7", "revision": revision});
    let forged = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Memory", "metadata": {"name": "forged"},
        "spec": {"agentId": "keeper", "session": "summer"}});
    let writer = json!([{"stepRunUID": "u", "attempt": 1, "sequence": 1}]);
    let big = format!("\"{}\"", "x".repeat(60_000));
    let many: Value = (0..5)
        .map(|n| (format!("k{n}"), json!({"value": big, "revision": 3})))
        .collect::<serde_json::Map<_, _>>()
        .into();

    add("may have 1000 labels", admin, to(json!({"metadata": {"labels": flood(1001)}})));
    add("is made by Lockstep", admin, Ask::post(team.all("memories"), forged.clone()));
    add("is made by Lockstep", &gateway, Ask::post(team.all("memories"), forged));
    add("labels of lockstep.dev/", bob, to(json!({"metadata": {"labels": {"lockstep.dev/agent": "other"}}})));
    add("labels of lockstep.dev/", &gateway, to(json!({"metadata": {"labels": {"lockstep.dev/session": null}}})));
    add("the owners of a Memory", bob, to(json!({"metadata": {"ownerReferences": owner(&run)}})));
    add("the operator changes no content", &operator, spec(json!({"revision": 3, "entries": {"note": entry(3)}})));
    add("the operator changes no content", &operator, spec(json!({"revision": 3, "entries": {"note": null}})));
    add("spec.writers is set", bob, spec(json!({"writers": writer})));
    add("only grows", bob, spec(json!({"revision": 1})));
    add("needs a higher spec.revision", bob, spec(json!({"entries": {"note": null}})));
    add("what is set gets a revision", bob, spec(json!({"revision": 3, "entries": {"note": entry(2)}})));
    add("what is set gets a revision", bob, spec(json!({"revision": 3, "entries": {"new": entry(4)}})));
    add("what is set gets a revision", &gateway, spec(json!({"revision": 3, "entries": {"new": entry(1)}})));
    add("a key is a letter", bob, spec(json!({"revision": 3, "entries": {"a/b": entry(3)}})));
    add("a key is a letter", bob, spec(json!({"revision": 3, "entries": {"": entry(3)}})));
    add("262144 characters in all", bob, spec(json!({"revision": 3, "entries": many})));
    Ok(cases)
}

#[tokio::test]
async fn people_with_the_right_correct_a_memory_and_nobody_else_does() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("memory-people").await?;
    let run = team.admin.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    made(&team, "planner", "spring", "").await?;
    made(&team, "planner", "_shop-12345678", run["metadata"]["uid"].as_str().context("no UID")?).await?;
    // Whose it is never changes, whoever asks.
    for change in [json!({"agentId": "other"}), json!({"session": "other"})] {
        let ask = Ask::patch(path(&team, "planner", "spring"), json!({"spec": change}));
        team.admin.is_refused(&ask, 422, "never change").await?;
    }
    ends(&team, "bob", &["memory", "get", "planner", "spring", "status"], 0, "\"initialized\"").await?;
    ends(&team, "bob", &["memory", "set", "planner", "spring", "style", "\"formal\""], 0, "style is set, revision 2")
        .await?;
    ends(&team, "bob", &["memory", "set", "planner", "spring", "style", "1", "--if-revision", "1"], 1, "revision 2")
        .await?;
    ends(
        &team,
        "bob",
        &["memory", "set", "planner", "spring", "style", "{\"a\":1}", "--if-revision", "2"],
        0,
        "revision 3",
    )
    .await?;
    ends(&team, "bob", &["memory", "list", "planner", "spring"], 0, "{\"a\":1}").await?;
    ends(&team, "bob", &["memory", "get", "planner", "spring"], 0, "\"story_id\": \"spring\"").await?;
    ends(&team, "bob", &["memory", "rm", "planner", "spring", "style"], 0, "style is deleted").await?;
    ends(&team, "bob", &["memory", "rm", "planner", "spring", "style"], 4, "no key style").await?;
    ends(&team, "bob", &["memory", "set", "planner", "spring", "a b", "1"], 2, "key: must be").await?;
    ends(&team, "bob", &["memory", "get", "writer", "spring", "status"], 4, "no memory of the agent writer").await?;
    // A run's name stands for its session.
    let status = json!({"status": {"session": {"id": "_shop-12345678", "phase": "Initiated"}}});
    team.operator.gets(&Ask::patch(team.one("workflows", "shop/status"), status)).await?;
    ends(&team, "bob", &["memory", "get", "planner", "shop", "story_id"], 0, "\"_shop-12345678\"").await?;
    // Alice may decide, and neither see nor change what agents remember.
    ends(&team, "alice", &["memory", "get", "planner", "spring"], 5, "cannot get resource").await?;
    team.bob.gets(&Ask::delete(path(&team, "planner", "spring"))).await?;
    team.close().await
}

/// Agents by their shim, and people by patches, count on one key at once; then what the shim refuses.
#[tokio::test]
async fn an_agent_remembers_by_its_shim() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("memory-shim").await?;
    let gateway = Gateway::start(&team).await?;
    let (attempt, pod) = Box::pin(attempt(&team)).await?;
    made(&team, "writer", "s", "").await?;
    made(&team, "other", "s", "").await?;
    let script = format!(
        r#"cd $LOCKSTEP_WORK
        count() {{
          n=0
          while [ $n -lt {EACH} ]; do
            entry=$($SHIM memory get count --revision) || exit 9
            value=$(echo "$entry" | sed 's/.*"value":\([0-9]*\).*/\1/') revision=$(echo "$entry" | sed 's/.*"revision":\([0-9]*\).*/\1/')
            $SHIM memory set count $((value + 1)) --if-revision $revision > /dev/null 2>&1 && n=$((n + 1))
          done
        }}
        set -e
        test "$($SHIM memory get status)" = initialized
        test "$($SHIM memory get story_id --json)" = '"s"'
        test "$($SHIM memory set a '{{"x": [1, null]}}')" -gt 1
        test "$($SHIM memory get a)" = '{{"x":[1,null]}}'
        echo '"from a file"' > value.json; $SHIM memory set b --file value.json > /dev/null
        test "$($SHIM memory get b)" = "from a file"
        $SHIM memory delete b; $SHIM memory delete b
        code=0; $SHIM memory get b 2> /dev/null || code=$?; test $code = 1
        code=0; $SHIM memory set a 1 --if-revision 1 2> /dev/null || code=$?; test $code = 1
        code=0; $SHIM memory set a/b 1 2> wrong || code=$?; test $code = 2; grep -q 'key: must be' wrong
        code=0; $SHIM memory set a hello 2> wrong || code=$?; test $code = 2; grep -q 'is not JSON' wrong
        (printf '"'; head -c 70000 /dev/zero | tr '\0' x; printf '"') > big.json
        code=0; $SHIM memory set a --file big.json 2> wrong || code=$?; test $code = 2; grep -q 'at most 65536' wrong
        $SHIM memory list | grep -q '^agent_id'
        for n in $(seq {AT_ONCE}); do count & pids="$pids $!"; done
        for pid in $pids; do wait $pid; done
        echo '{{}}' > $LOCKSTEP_OUT/result.json; echo '# Plan' > $LOCKSTEP_OUT/plan.md"#
    );
    let start = json!({"spec": {"revision": 2, "entries": {"count": {"value": "0", "revision": 2}}}});
    team.bob.gets(&Ask::patch(path(&team, "writer", "s"), start)).await?;
    let people = futures::future::try_join_all((0..AT_ONCE).map(|_| counting(&team)));
    let (ran, counted) = tokio::join!(run_shim(&team, &gateway, (&attempt, &pod), &script), people);
    ran?;
    counted?;
    let stored = team.admin.gets(&Ask::get(path(&team, "writer", "s"))).await?;
    let total = (2 * AT_ONCE * EACH).to_string();
    ensure!(stored["spec"]["entries"]["count"]["value"] == total, "{}", stored["spec"]);
    let writer = &stored["spec"]["writers"][0];
    ensure!(writer["stepRunUID"] == attempt.uid && writer["attempt"] == 1, "{writer}");
    let other = team.admin.gets(&Ask::get(path(&team, "other", "s"))).await?;
    ensure!(other["spec"]["revision"] == 1, "another agent's memory was touched: {other}");
    team.close().await
}

/// One person who counts on, each time at the version that they saw.
async fn counting(team: &Team) -> Result<()> {
    let place = path(team, "writer", "s");
    let mut done = 0;
    while done < EACH {
        let seen = team.bob.gets(&Ask::get(&place)).await?;
        let count: i64 = seen["spec"]["entries"]["count"]["value"].as_str().context("no count")?.parse()?;
        let revision = seen["spec"]["revision"].as_i64().context("no revision")? + 1;
        let counted = json!({"metadata": {"resourceVersion": seen["metadata"]["resourceVersion"]},
            "spec": {"revision": revision, "entries": {"count": {"value": (count + 1).to_string(), "revision": revision}}}});
        match team.bob.asks(&Ask::patch(&place, counted)).await {
            Ok(_) => done += 1,
            Err(refusal) if refusal.code == 409 => {}
            Err(refusal) => anyhow::bail!("{refusal:?}"),
        }
    }
    Ok(())
}
