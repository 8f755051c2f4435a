//! A receiver of notifications, behind a port of this machine.

#![allow(dead_code, reason = "those who include this file need different parts of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep::cluster::sinks::{SinkOptions, Sinks};
use ring::hmac;
use serde_json::{Value, json};

pub const SECRET: &str = "a secret of more than sixteen bytes";

/// One request.
#[derive(Clone, Debug)]
pub struct Heard {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub answered: u16,
}

impl Heard {
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The last word of its type: what it tells of.
    pub fn fact(&self) -> String {
        self.event()["type"].as_str().expect("a type").rsplit('.').next().expect("a word").to_owned()
    }

    /// It is an event that is signed with the secret.
    pub fn is_genuine(&self) {
        let (id, at) = (&self.headers["webhook-id"], &self.headers["webhook-timestamp"]);
        assert_eq!(self.event()["id"], id.as_str());
        assert_eq!(self.headers["content-type"], "application/cloudevents+json");
        let mut signed = format!("{id}.{at}.").into_bytes();
        signed.extend_from_slice(&self.body);
        let signature = self.headers["webhook-signature"].strip_prefix("v1,").expect("version 1").to_owned();
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        hmac::verify(&key, &signed, &STANDARD.decode(signature).expect("Base64")).expect("its signature");
    }
}

/// What is done with a request before it is answered.
type Reaction = Box<dyn Fn(&Heard) + Send>;

/// A receiver that answers what it is told to.
pub struct Receiver {
    pub url: String,
    pub folder: PathBuf,
    answers: Arc<AtomicU16>,
    heard: Arc<Mutex<Vec<Heard>>>,
    reaction: Arc<Mutex<Option<Reaction>>>,
}

impl Receiver {
    pub fn open(name: &str) -> Self {
        let server = tiny_http::Server::http("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", server.server_addr());
        let folder = std::env::temp_dir().join(format!("lockstep-notifications-{}-{name}", std::process::id()));
        std::fs::create_dir_all(folder.join("chat")).expect("a folder");
        std::fs::write(folder.join("chat/url"), format!("{url}\n")).expect("its URL");
        std::fs::write(folder.join("chat/secret"), format!("{SECRET}\n")).expect("its secret");
        let answers = Arc::new(AtomicU16::new(200));
        let receiver = Self { url, folder, answers, heard: Arc::default(), reaction: Arc::default() };
        let (answers, heard) = (Arc::clone(&receiver.answers), Arc::clone(&receiver.heard));
        let reaction = Arc::clone(&receiver.reaction);
        std::thread::spawn(move || {
            for mut request in server.incoming_requests() {
                let mut body = Vec::new();
                request.as_reader().read_to_end(&mut body).expect("a body");
                let headers = request.headers().iter();
                let headers =
                    headers.map(|one| (one.field.as_str().as_str().to_lowercase(), one.value.to_string())).collect();
                let path = request.url().to_owned();
                let answered = answers.load(Ordering::SeqCst);
                let one = Heard { path, headers, body, answered };
                if let Some(react) = &*reaction.lock().expect("nobody panicked") {
                    react(&one);
                }
                heard.lock().expect("nobody panicked").push(one);
                let more = match answered {
                    307 => Some("location: /elsewhere"),
                    429 => Some("retry-after: 40"),
                    _ => None,
                };
                let mut response = tiny_http::Response::from_string("so it is").with_status_code(answered);
                if let Some(header) = more {
                    response.add_header(header.parse::<tiny_http::Header>().expect("a header"));
                }
                request.respond(response).expect("sent");
            }
        });
        receiver
    }

    pub fn answers(&self, code: u16) {
        self.answers.store(code, Ordering::SeqCst);
    }

    /// Before it answers, from now on.
    pub fn reacts(&self, reaction: impl Fn(&Heard) + Send + 'static) {
        *self.reaction.lock().expect("nobody panicked") = Some(Box::new(reaction));
    }

    pub fn sinks(&self, more: &Value) -> Sinks {
        let mut sink = json!({"name": "chat", "default": true, "signed": true});
        sink.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let options =
            SinkOptions { notifications: json!([sink]).to_string(), notifications_folder: self.folder.clone() };
        Sinks::open(&options).expect("they open")
    }

    pub fn all(&self) -> Vec<Heard> {
        self.heard.lock().expect("nobody panicked").clone()
    }

    /// The types of what was taken, in order.
    pub fn taken(&self) -> Vec<String> {
        self.all().iter().filter(|one| one.answered == 200).map(Heard::fact).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
