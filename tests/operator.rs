//! The operator as a process.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "all of it is test")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Deployment of the strategy Recreate waits for the end of the old pod, up to 30 s where it overlooks its SIGTERM.
#[test]
fn it_ends_at_once_while_the_api_server_does_not_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    let config = std::env::temp_dir().join(format!("lockstep-operator-{}.kubeconfig", std::process::id()));
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{{"name": "c", "context": {{"cluster": "c", "user": "u"}}}}],
        "clusters": [{{"name": "c", "cluster": {{"server": "http://{address}"}}}}], "users": [{{"name": "u", "user": {{}}}}]}}"#
    );
    std::fs::write(&config, text).expect("a file");
    let child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["operator", "--metrics-listen", "127.0.0.1:0"])
        .env("KUBECONFIG", &config)
        .env("LOCKSTEP_NAMESPACE", "lockstep-system")
        .env("LOCKSTEP_IMAGE", "lockstep:test")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the operator starts");
    let mut operator = Ended(child);
    // It has asked its first question, and gets no answer.
    let (_question, _) = silent.accept().expect("it calls the API server");
    kill(Pid::from_raw(i32::try_from(operator.0.id()).expect("a pid")), Signal::SIGTERM).expect("it is there");
    let status = operator.0.wait().expect("it ends");
    let _ = std::fs::remove_file(&config);
    assert!(status.success(), "it was to end by itself, and did so with {status}");
}
