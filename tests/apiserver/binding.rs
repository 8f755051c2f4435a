//! What was pinned is what is read, on what a real API server keeps and gives back; statuses of Documents are written to
//! the very object that was decided on.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use lockstep::api::definition::Definition;
use lockstep::api::document::{DocumentPhase, DocumentStatus};
use lockstep::api::step_run::Binding;
use lockstep::api::workflow::DefinitionRef;
use lockstep::api::{Document, Workflow};
use lockstep::cluster::apply::apply;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::contents::Contents;
use lockstep::decide::content::Pin;
use lockstep::decide::{Effect, build, document};
use lockstep::definition::pinned;
use serde_json::{Value, json};

use crate::support::{Ask, Team, document as put, policies_whole, until, workflow};

/// Numbers, orders and characters that clients, the API server and its admission spell each in their own way.
fn awkward() -> Value {
    let text = r#"{"zeta": 1.0, "alpha": [0.1, 1e3, 1e21, -0.0, 1.5e-7, 18446744073709551615, -9223372036854775808,
        123456789012345680000, 1.2345678901234567e18, 9007199254740993], "Ö": "\u0000\ud83d\ude00<&>\u2028",
        "deep": {"b": null, "a": {"y": true, "x": ""}}, "": []}"#;
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn a_definition_is_the_pinned_one_however_it_was_spelt() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("binding").await?;
    team.admin
        .gets(&Ask::post(
            team.all("workflows"),
            workflow(
                "shop",
                &json!({"templateRef": null, "steps": [{"name": "a", "agentId": "x"}], "parameters": awkward()}),
            ),
        ))
        .await?;
    let client = team.operator.client();
    let run: Workflow = Api::namespaced(client.clone(), &team.namespace).get("shop").await?;
    let uid = run.metadata.uid.clone().context("a UID")?;
    // As a client sent them, and as the API server gave them back; as a text, and as JSON, as older versions pinned them.
    let as_sent = awkward().as_object().cloned().context("an object")?;
    let as_given = run.spec.parameters.clone().context("parameters")?;
    let all = [(as_sent.clone(), false), (as_given.clone(), false), (as_sent, true), (as_given, true)];
    for (n, (parameters, is_plain)) in all.into_iter().enumerate() {
        let own = format!("shop-{n}");
        let definition = Definition {
            workflow: "shop".into(),
            workflow_uid: uid.clone(),
            parameters,
            steps: run.spec.steps.clone(),
            ..Definition::default()
        };
        let data = |definition: &Definition| -> Result<RawExtension> {
            Ok(RawExtension(if is_plain { serde_json::to_value(definition)? } else { pinned::data(definition) }))
        };
        let mut revision = build::revision(&run, &definition);
        revision.metadata.name = Some(own.clone());
        revision.data = Some(data(&definition)?);
        let pinned = DefinitionRef { revision_name: own.clone(), digest: pinned::digest(&definition) };
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), &team.namespace);
        revisions.create(&PostParams::default(), &revision).await?;
        let read = |pinned: DefinitionRef| {
            let (client, namespace, uid) = (client.clone(), team.namespace.clone(), uid.clone());
            async move { Contents::default().definition(&client, &namespace, &pinned, &uid).await }
        };
        assert!(read(pinned.clone()).await?.is_some(), "{own}: as it was created");
        // Whoever writes to it has the API server spell it anew, which it refuses where that makes a difference to it.
        let path = format!("/apis/apps/v1/namespaces/{}/controllerrevisions/{own}", team.namespace);
        team.admin.gets(&Ask::annotate(&path, json!({"seen": "yes"}))).await.ok();
        assert!(read(pinned.clone()).await?.is_some(), "{own}: after a write of somebody else");
        let whole = team.admin.gets(&Ask::get(&path)).await?;
        team.admin.gets(&Ask::put(&path, whole)).await.ok();
        assert!(read(pinned.clone()).await?.is_some(), "{own}: after it was written whole");
        // Its data cannot be changed, so somebody makes it again.
        team.admin.gets(&Ask::delete(&path)).await?;
        until("it is gone", || async { Ok(revisions.get_opt(&own).await?.is_none().then_some(())) }).await?;
        let mut forged = revision.clone();
        let mut other = definition.clone();
        other.steps[0].parameters.get_or_insert_default().insert("forged".to_owned(), json!(true));
        forged.data = Some(data(&other)?);
        revisions.create(&PostParams::default(), &forged).await?;
        assert!(read(pinned).await?.is_none(), "{own}: another definition under its name");
    }
    team.close().await
}

#[tokio::test]
async fn a_document_that_was_exchanged_is_not_read_and_gets_no_status() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("binding").await?;
    let client = team.operator.client();
    let documents: Api<Document> = Api::namespaced(client.clone(), &team.namespace);
    let make = || async {
        team.operator.gets(&Ask::post(team.all("documents"), put("shop-brief", &json!({})))).await?;
        anyhow::Ok(documents.get("shop-brief").await?)
    };
    let gone = || async {
        documents.delete("shop-brief", &DeleteParams::default()).await.ok();
        until("it is gone", || async { Ok(documents.get_opt("shop-brief").await?.is_none().then_some(())) }).await
    };
    let first = make().await?;
    let digest = lockstep::api::name::digest_bytes(first.spec.content.as_bytes());
    let pin = Pin::new("shop-brief", Some(&Binding { uid: first.metadata.uid.clone(), digest }));
    let contents = Contents::default();
    let read = || async { Contents::default().content(&client, &team.namespace, &pin).await };
    assert!(read().await?.is_ok());
    assert!(contents.content(&client, &team.namespace, &pin).await?.is_ok());
    let publish = |seen: &Document| {
        let status =
            DocumentStatus { phase: Some(DocumentPhase::Published), revision: Some(1), ..DocumentStatus::default() };
        vec![document::set_status(seen, status)]
    };
    let write = |effects: Vec<Effect>| {
        let (client, namespace) = (client.clone(), team.namespace.clone());
        async move { apply(&client, &namespace, &effects, &Consistency::default()).await }
    };
    write(publish(&first)).await.context("what was decided on")?;
    let stale = write(publish(&first)).await.expect_err("it was written to since");
    assert!(stale.is_conflict(), "{stale}");
    gone().await?;
    let said = read().await?.expect_err("it is gone").to_string();
    assert!(said.contains("shop-brief") && said.contains("was deleted"), "{said}");
    assert!(write(publish(&first)).await.is_err(), "there is nothing to write to");
    let second = make().await?;
    let said = read().await?.expect_err("it is another one").to_string();
    assert!(said.contains("another one was created under its name"), "{said}");
    assert!(contents.content(&client, &team.namespace, &pin).await?.is_ok(), "what was verified once stays as it was");
    let other = write(publish(&first)).await.expect_err("it is another one");
    assert!(other.is_conflict(), "{other}");
    assert_eq!(documents.get("shop-brief").await?.metadata.resource_version, second.metadata.resource_version);
    team.close().await
}

#[tokio::test]
async fn a_document_that_is_made_and_published_in_one_pass_is_published_once() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("binding").await?;
    team.admin.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    let client = team.operator.client();
    let run: Workflow = Api::namespaced(client.clone(), &team.namespace).get("shop").await?;
    let inline = serde_json::from_value(json!({"type": "brief", "content": "text"}))?;
    let made = build::run_document(&run, &inline);
    let status = document::initial_status(&made, 1);
    let effects = document::create(made.clone(), status);
    let documents: Api<Document> = Api::namespaced(client.clone(), &team.namespace);
    let name = made.metadata.name.context("a name")?;
    let mut versions = Vec::new();
    // The second pass does not know of the first one.
    for _ in 0..2 {
        apply(&client, &team.namespace, &effects, &Consistency::default()).await?;
        let found = Arc::new(documents.get(&name).await?);
        assert!(document::is_published(&found) && found.status.as_ref().and_then(|s| s.revision) == Some(1));
        versions.push(found.metadata.resource_version.clone());
    }
    assert_eq!(versions[0], versions[1], "nothing was written again");
    team.close().await
}
