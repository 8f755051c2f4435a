//! What receivers outside of the cluster are told, over real connections: once, signed, and again until it arrives.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep::apiserver::Kind;
use ring::hmac;
use serde_json::{Value, json};

use super::receiver::{Heard, Receiver, SECRET};
use super::town::{Deed, Town};

/// The example, and what its chat was posted.
struct Sample {
    process: std::process::Child,
    url: String,
    posted: Arc<Mutex<Vec<String>>>,
}

impl Sample {
    fn open() -> Self {
        let chat = tiny_http::Server::http("127.0.0.1:0").expect("a port");
        let own = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let process = std::process::Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/notifications/receiver.py"))
            .arg(own.port().to_string())
            .env("SIGNING_SECRET", SECRET)
            .env("CHAT_WEBHOOK", format!("http://{}/", chat.server_addr()))
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("python3 starts");
        let posted: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&posted);
        std::thread::spawn(move || {
            for mut request in chat.incoming_requests() {
                let message: Value = serde_json::from_reader(request.as_reader()).expect("JSON");
                lines.lock().expect("nobody panicked").push(message["text"].as_str().expect("a text").to_owned());
                request.respond(tiny_http::Response::empty(200)).expect("sent");
            }
        });
        Self { process, url: format!("http://{own}/"), posted }
    }

    fn post(&self, heard: &Heard, body: &[u8]) -> u16 {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let mut request = config.new_agent().post(&self.url);
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            request = request.header(name, &heard.headers[name]);
        }
        request.send(body).expect("an answer").status().as_u16()
    }

    /// The beginning of the answer to a request with such headers.
    fn raw(&self, headers: &str) -> String {
        let address = self.url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        write!(stream, "POST / HTTP/1.1\r\nhost: x\r\n{headers}\r\n").expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn gated(town: &Town) {
    town.agent("default", &json!({}), |_| Deed { output: json!({"ok": true}), ..Deed::default() });
    town.flow("default", &json!({"gate": {"name": "plan", "message": "Is it right?"}}));
}

fn events(town: &Town, reason: &str) -> Vec<String> {
    let all = town.objects(Kind::Event).into_iter().filter(|event| event["reason"] == reason);
    all.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_fact_is_told_once_and_signed_also_by_an_operator_that_remembers_nothing() {
    let receiver = Receiver::open("once");
    let mut town = Town::telling(receiver.sinks(&json!({}))).await;
    gated(&town);
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(202);
    town.until("the wait is told", || receiver.taken().contains(&"waiting".to_owned()).then_some(())).await;
    // Its status is written in time, or it would be told again, with the same id.
    town.until("it is latched", || {
        let steps = town.objects(Kind::StepRun);
        (steps[0]["status"]["notified"][0]["told"] == json!(["gate1"])).then_some(())
    })
    .await;
    town.replace_operator(receiver.sinks(&json!({})));
    let path = "/runs/s/steps/work/decision";
    town.ask("bob", "POST", path, json!({"accepted": true, "comment": "good"})).await.is(200);
    town.end("s").await;
    town.until("the end is told", || receiver.taken().contains(&"completed".to_owned()).then_some(())).await;
    town.until("and latched", || {
        let runs = town.objects(Kind::Workflow);
        (runs[0]["status"]["notified"][0]["told"] == json!(["started", "ended"])).then_some(())
    })
    .await;
    town.replace_operator(receiver.sinks(&json!({})));
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(receiver.taken(), ["started", "waiting", "decided", "completed"]);
    for heard in receiver.all() {
        heard.is_genuine();
    }
    let wait = receiver.all()[1].event();
    assert_eq!((&wait["subject"], &wait["data"]["gate"]), (&json!("work"), &json!("plan")));
    assert!(wait["data"]["commands"][0].as_str().is_some_and(|command| command.starts_with("kubectl")), "{wait}");
    let decided = receiver.all()[2].event();
    assert_eq!((&decided["data"]["by"], &decided["data"]["message"]), (&json!("bob"), &json!("good")));
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_does_not_take_holds_no_run_up_and_is_told_later() {
    let receiver = Receiver::open("later");
    receiver.answers(503);
    let mut town = Town::telling(receiver.sinks(&json!({"events": ["started", "completed"]}))).await;
    town.echo("default");
    let reply = town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    assert!(reply.body["result"].is_string() || reply.body["result"].is_object(), "{}", reply.text);
    town.until("it was tried", || (receiver.all().len() > 2).then_some(())).await;
    assert!(town.elapsed() < Duration::from_secs(600), "tried again soon");
    // Whoever works next tells what is not latched.
    town.replace_operator(receiver.sinks(&json!({"events": ["started", "completed"]})));
    receiver.answers(200);
    town.until("both are told", || (receiver.taken() == ["started", "completed"]).then_some(())).await;
    assert!(events(&town, "NotificationLost").is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_it_is_given_up_and_said() {
    let receiver = Receiver::open("lost");
    receiver.answers(500);
    let town = Town::telling(receiver.sinks(&json!({"events": ["completed"]}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    let mut lost = None;
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        lost = events(&town, "NotificationLost").pop();
        if lost.is_some() {
            break;
        }
    }
    let lost = lost.expect("it is given up");
    assert!(lost.contains("chat was not told of") && lost.ends_with("it answered 500"), "{lost}");
    assert!(!lost.contains(&receiver.url), "addresses of chats are secrets");
    assert!(town.elapsed() > Duration::from_secs(3600));
    let tries = receiver.all().len();
    // Pauses of a minute at most, and each longer than the one before.
    assert!((20..=70).contains(&tries), "{tries}");
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(receiver.all().len(), tries, "it is over");
}

#[tokio::test(start_paused = true)]
async fn people_are_called_however_long_their_pager_was_down() {
    let receiver = Receiver::open("night");
    receiver.answers(503);
    let mut town = Town::telling(receiver.sinks(&json!({"events": ["waiting"]}))).await;
    gated(&town);
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(202);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let late = events(&town, "NotificationLate");
    assert!(late.len() == 1 && late[0].ends_with("tried on: it answered 503"), "{late:?}");
    assert!(events(&town, "NotificationLost").is_empty());
    let tries = receiver.all().len();
    assert!((100..=140).contains(&tries), "once a minute: {tries}");
    // One that was away for longer than an hour has only begun to try.
    town.replace_operator(receiver.sinks(&json!({"events": ["waiting"]})));
    town.until("it is tried", || (receiver.all().len() > tries).then_some(())).await;
    receiver.answers(200);
    town.until("they are called", || (receiver.taken() == ["waiting"]).then_some(())).await;
    assert_eq!(events(&town, "NotificationLate").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_refuses_keeps_nothing_else_from_it() {
    let receiver = Receiver::open("refused");
    receiver.answers(400);
    let town = Town::telling(receiver.sinks(&json!({"events": ["started", "completed"]}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "a"})).await.is(200);
    town.until("it was refused for long", || (receiver.all().len() > 20).then_some(())).await;
    let refused: Vec<String> = receiver.all().iter().map(|one| one.headers["webhook-id"].clone()).collect();
    receiver.answers(200);
    let before = town.elapsed();
    town.post("/run", json!({"input": "x", "story_id": "b"})).await.is(200);
    town.until("the other run is told", || {
        let taken = receiver.all().into_iter().filter(|one| one.answered == 200);
        (taken.filter(|one| !refused.contains(&one.headers["webhook-id"])).count() == 2).then_some(())
    })
    .await;
    assert!(town.elapsed() < before + Duration::from_secs(20), "{:?}", town.elapsed() - before);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_not_followed_and_without_its_secret_nothing_is_sent() {
    let receiver = Receiver::open("redirect");
    receiver.answers(307);
    let town = Town::telling(receiver.sinks(&json!({"events": ["started"]}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    town.until("it was tried again", || (receiver.all().len() > 1).then_some(())).await;
    assert!(receiver.all().iter().all(|heard| heard.path == "/hook"));

    let other = Receiver::open("unsigned");
    std::fs::remove_file(other.folder.join("chat/secret")).expect("it was there");
    let town = Town::telling(other.sinks(&json!({"events": ["started"]}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(other.all().is_empty());
    std::fs::write(other.folder.join("chat/secret"), SECRET).expect("it comes");
    town.until("it is told", || (other.taken() == ["started"]).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_says_how_long_it_is_left_alone() {
    let receiver = Receiver::open("retry-after");
    receiver.answers(429);
    let town = Town::telling(receiver.sinks(&json!({"events": ["started"]}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    town.until("it was tried", || (receiver.all().len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(38)).await;
    assert_eq!(receiver.all().len(), 1, "it asked for forty seconds");
    town.until("it was tried again", || (receiver.all().len() == 2).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_receiver_is_told_no_history() {
    let receiver = Receiver::open("new");
    let mut town = Town::telling(receiver.sinks(&json!({"default": false}))).await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "a"})).await.is(200);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    town.replace_operator(receiver.sinks(&json!({})));
    town.post("/run", json!({"input": "x", "story_id": "b"})).await.is(200);
    town.until("the new run is told", || (receiver.taken() == ["started", "completed"]).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(receiver.taken().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_a_receiver_is_said_once_and_the_run_goes_on() {
    let receiver = Receiver::open("unknown");
    let mut town = Town::telling(receiver.sinks(&json!({}))).await;
    town.echo("default");
    town.make(Kind::Workflow, "r", &json!({"templateRef": {"name": "default"}, "notifications": ["pager"]}));
    let said = town.until("it is said", || events(&town, "NotificationSinkUnknown").pop()).await;
    assert!(said.contains("no receiver pager") && said.contains("configured are chat"), "{said}");
    town.until("it completes", || {
        town.objects(Kind::Workflow).iter().any(|run| run["status"]["phase"] == "Completed").then_some(())
    })
    .await;
    town.replace_operator(receiver.sinks(&json!({})));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(events(&town, "NotificationSinkUnknown").len(), 1);
    assert!(receiver.all().is_empty(), "it named others");
}

/// Signed by now: the example refuses what is old.
fn signed(body: &[u8]) -> Heard {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let mut text = format!("7.{at}.").into_bytes();
    text.extend_from_slice(body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = format!("v1,{}", STANDARD.encode(hmac::sign(&key, &text)));
    let headers =
        [("webhook-id", "7".to_owned()), ("webhook-timestamp", at.to_string()), ("webhook-signature", signature)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    Heard { path: "/".to_owned(), headers, body: body.to_vec(), answered: 0 }
}

#[test]
fn the_sample_receiver_posts_each_genuine_notification_once() {
    let sample = Sample::open();
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect(sample.url.trim_start_matches("http://").trim_end_matches('/')).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not listen");
        std::thread::yield_now();
    }
    let event = json!({"id": "7", "type": "dev.lockstep.run.waiting", "subject": "plan",
        "data": {"namespace": "shop", "run": "bikes", "message": "Is <it> right?\nkubectl delete ns shop",
            "commands": ["kubectl lockstep approve bikes/plan"], "document": {"firstLines": "# Plan\nkubectl & more"}}});
    let body = event.to_string().into_bytes();
    let genuine = signed(&body);
    assert_eq!(sample.post(&genuine, b"{}"), 401, "another body");
    let mut old = genuine.clone();
    old.headers.insert("webhook-timestamp".to_owned(), "1".to_owned());
    assert_eq!(sample.post(&old, &body), 401, "another time");
    for (length, code) in [("", 411), ("content-length: -1\r\n", 411), ("content-length: 9999999\r\n", 413)] {
        assert_eq!(sample.raw(length), format!("HTTP/1.0 {code}"), "{length:?}");
    }
    // Two at the same moment, and one after them.
    std::thread::scope(|threads| {
        let both = [(); 2].map(|()| threads.spawn(|| sample.post(&genuine, &body)));
        assert_eq!(both.map(|one| one.join().expect("an answer")), [204, 204]);
    });
    assert_eq!(sample.post(&genuine, &body), 204);
    // No author's line stands where commands do.
    let expected = "shop/bikes waiting plan: Is &lt;it&gt; right? kubectl delete ns shop\nkubectl lockstep approve bikes/plan\n| # Plan\n| kubectl &amp; more";
    assert_eq!(*sample.posted.lock().expect("nobody panicked"), [expected]);
}
