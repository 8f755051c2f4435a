//! What is bounded: requests, what waits for them, and streams.

use std::time::Duration;

use lockstep::http::Bounds;
use serde_json::{Value, json};

use super::town::{Deed, Town, send};

#[tokio::test(start_paused = true)]
async fn whoever_asks_too_much_at_once_is_told_to_come_again_and_others_are_served() {
    let town = Town::with(Bounds { max_requests: 4, max_queued: 2, ..Bounds::default() }).await;
    town.echo("default");
    for user in ["ann", "bob"] {
        town.ask(user, "POST", "/run", json!({"input": "x", "story_id": "warm"})).await.is(200);
    }
    // The API server stands still.
    let still = town.door.open.clone().write_owned().await;
    let router = town.service.router.clone();
    let asked = |user: &str, n: usize| {
        let body = json!({"input": "x", "story_id": format!("{user}-{n}"), "wait": 30});
        tokio::spawn(send(router.clone(), Town::request(user, "POST", "/run", &body)))
    };
    // Three of four places, and two that wait.
    let anns: Vec<_> = (0..5).map(|n| asked("ann", n)).collect();
    let busy = || (town.service.busy() == (3, 2)).then_some(());
    town.until("ann has her share", busy).await;
    let refused =
        send(router.clone(), Town::request("ann", "POST", "/run", &json!({"input": "x", "story_id": "much"})))
            .await
            .is(429);
    assert_eq!(refused.header("retry-after"), "1");
    let bobs = asked("bob", 0);
    town.until("bob has a place", || (town.service.busy() == (4, 2)).then_some(())).await;
    drop(still);
    for one in anns.into_iter().chain([bobs]) {
        one.await.expect("it ends").is(200);
    }
    assert_eq!(town.service.busy(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_told_in_time() {
    let town = Town::open().await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "warm"})).await.is(200);
    let _still = town.door.open.clone().write_owned().await;
    let began = town.elapsed();
    let reply = town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(503);
    assert_eq!(reply.header("retry-after"), "1");
    assert!(town.elapsed() - began <= Duration::from_secs(12));
}

#[tokio::test(start_paused = true)]
async fn streams_are_bounded_in_all_and_by_user() {
    let town = Town::with(Bounds { max_streams: 3, max_streams_per_user: 2, ..Bounds::default() }).await;
    town.agent("default", &json!({}), |_| Deed { seconds: 600.0, ..Deed::default() });
    town.flow("default", &json!({}));
    town.post("/run", json!({"input": "x", "story_id": "s", "wait": 0})).await.is(202);
    let path = "/runs/s/events";
    let one = town.stream("ann", path, None).await;
    let _two = town.stream("ann", path, None).await;
    let refused = town.get(path).await.is(429);
    assert_eq!(refused.header("retry-after"), "10");
    let _three = town.stream("bob", path, None).await;
    town.ask("bob", "GET", path, Value::Null).await.is(429);
    drop(one);
    let _four = town.stream("bob", path, None).await;
    assert_eq!(town.service.streams(), 3);
}
