//! When the mailbox of a StepRun was written to. No cache keeps `managedFields`: the API server is asked, where a person has decided or
//! answered, and before a deadline passes.

use kube::{Api, Client, ResourceExt};

use super::Error;
use super::client::bounded;
use super::stored::Stored;
use crate::api::StepRun;
use crate::decide::mail::{self, Mail};

/// Of the very version that is decided on: where there is another one by now, the watch brings it.
pub async fn of(client: &Client, step_run: &StepRun) -> Result<Mail, Error> {
    let api: Api<Stored<StepRun>> = Api::namespaced(client.clone(), &step_run.namespace().unwrap_or_default());
    let live = bounded("GET stepruns", api.get_opt(&step_run.name_any())).await?;
    let identity = |seen: &StepRun| (seen.uid(), seen.resource_version());
    match live {
        Some(Stored(Ok(live))) if identity(&live) == identity(step_run) => {
            Ok(Mail::Read(mail::written(&live.metadata)))
        }
        _ => Err(Error::Stale(step_run.name_any())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kube::api::{Patch, PatchParams, PostParams};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::name::{ANSWER, DECIDED_BY, DECISION};
    use crate::api::step_run::StepRunSpec;
    use crate::apiserver::{self, ApiServer, Registry};

    async fn annotate(api: &Api<StepRun>, annotations: Value) -> StepRun {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        api.patch("s", &PatchParams::default(), &patch).await.expect("it is written")
    }

    #[tokio::test]
    async fn the_mailbox_is_dated_by_the_api_server_alone() {
        let now = Arc::new(AtomicI64::new(10));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || Timestamp::from_second(clock.load(Ordering::Relaxed)).expect("a time"));
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "mail".to_owned());
        let server = ApiServer::new(registry, "operator");
        let client = server.client("team");
        let at = |second: i64| Mail::Read(Some(Time(Timestamp::from_second(second).expect("a time"))));
        let (operator, ann): (Api<StepRun>, Api<StepRun>) =
            (Api::namespaced(client.clone(), "team"), Api::namespaced(server.as_user("ann").client("team"), "team"));
        let made = StepRun::new("s", StepRunSpec::default());
        let made = operator.create(&PostParams::default(), &made).await.expect("it is made");
        assert_eq!(of(&client, &made).await.expect("an answer"), Mail::Read(None), "nothing lies there");

        now.store(20, Ordering::Relaxed);
        let decided = annotate(&ann, json!({DECISION: "accepted", DECIDED_BY: "ann"})).await;
        assert_eq!(of(&client, &decided).await.expect("an answer"), at(20));
        // What was seen before somebody wrote is not decided on.
        assert!(matches!(of(&client, &made).await, Err(Error::Stale(_))));

        // Others' writes change nothing of it, and what a client says of time is not heard.
        now.store(30, Ordering::Relaxed);
        let noted = annotate(&operator, json!({"someone.else/note": "x"})).await;
        assert_eq!(of(&client, &noted).await.expect("an answer"), at(20));
        let forged =
            Patch::Merge(json!({"metadata": {"managedFields": [], "annotations": {"someone.else/note": "y"}}}));
        let forged = operator.patch("s", &PatchParams::default(), &forged).await.expect("it is written");
        assert_eq!(of(&client, &forged).await.expect("an answer"), at(20));

        // An emptied mailbox has no time, and what comes next has its own.
        let emptied = annotate(&operator, json!({DECISION: null, DECIDED_BY: null})).await;
        assert_eq!(of(&client, &emptied).await.expect("an answer"), Mail::Read(None));
        now.store(40, Ordering::Relaxed);
        let answered = annotate(&ann, json!({ANSWER: "5"})).await;
        assert_eq!(of(&client, &answered).await.expect("an answer"), at(40));
    }
}
