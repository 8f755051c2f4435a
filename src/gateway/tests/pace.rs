//! How often progress is written, and that none is lost for it.

use super::*;

fn progress(percent: i32) -> Value {
    json!({"percent": percent, "message": format!("{percent} percent")})
}

#[tokio::test(start_paused = true)]
async fn progress_that_comes_too_soon_is_told_to_come_again() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.attempt("run", "_private");
    scene.claim(&attempt).await;
    for (millis, percent, code, stored) in
        [(0, 10, 204, 10), (100, 20, 503, 10), (1800, 30, 503, 10), (100, 30, 204, 30)]
    {
        tokio::time::advance(Duration::from_millis(millis)).await;
        let (answered, answer) = scene.call(&attempt, protocol::PROGRESS, &progress(percent)).await;
        let known = scene.status(&attempt.who.step_run)["agent"]["progress"]["percent"].clone();
        assert_eq!((answered, known), (code, json!(stored)), "{percent}: {answer}");
    }
}
