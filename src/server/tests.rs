//! The real server over loopback. Addresses of 127.0.0.0/8 are this machine's own, so each client can have one.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use axum::response::IntoResponse;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const CALL: &str = "POST /call HTTP/1.1\r\nhost: gateway\r\ncontent-length: 0\r\nauthorization: good\r\n\r\n";

struct Served {
    port: u16,
    stats: Stats,
    connector: TlsConnector,
    _stopper: watch::Sender<bool>,
}

/// Whoever says `good` is known; a body is waited for then, as the gateway does.
async fn call(
    axum::Extension(peer): axum::Extension<Peer>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> axum::response::Response {
    if headers.get(http::header::AUTHORIZATION).is_none_or(|value| value != "good") {
        peer.dismiss();
        return StatusCode::UNAUTHORIZED.into_response();
    }
    peer.prove();
    match tokio::time::timeout(Duration::from_secs(3), axum::body::to_bytes(body, 1 << 20)).await {
        Ok(Ok(_)) => "done".into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn serve(limits: Limits) -> Served {
    let made = rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).expect("a certificate");
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a configuration");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (stopper, stop) = watch::channel(false);
    let stats = Stats::default();
    let server = Server {
        limits,
        security: Security::Tls(TlsAcceptor::from(Arc::new(config))),
        stats: stats.clone(),
        router: Router::new().route("/call", post(call)),
    };
    tokio::spawn(server.serve(listener, stop));
    Served { port, stats, connector: TlsConnector::from(Arc::new(client)), _stopper: stopper }
}

impl Served {
    async fn connect(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect((Ipv4Addr::LOCALHOST, self.port).into()).await
    }

    async fn shake(&self, from: Ipv4Addr) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("gateway").expect("a name");
        self.connector.connect(name, self.connect(from).await?).await
    }

    /// A whole call on a connection of its own; gives the status line.
    async fn honest(&self, from: Ipv4Addr) -> io::Result<String> {
        let mut stream = self.shake(from).await?;
        stream.write_all(CALL.as_bytes()).await?;
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// Reads to the end, however it comes.
async fn ended(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    let mut some = [0; 4096];
    let reading = async {
        while let Ok(read @ 1..) = stream.read(&mut some).await {
            all.extend_from_slice(&some[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the server ends the connection");
    all
}

/// As the gateway has them.
fn limits() -> Limits {
    Limits {
        connections: 1024,
        per_address: 64,
        handshakes_per_address: 32,
        rate: Rate { burst: 128, per_second: 64 },
        idle: Duration::from_secs(30),
        proof: Some(Duration::from_secs(10)),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Attackers: a thread of their own, so that they do not stand in the server's way inside this process.
struct Attack {
    /// All have come that could.
    came: oneshot::Receiver<()>,
    /// Their connections stay until this is dropped.
    _release: oneshot::Sender<()>,
}

/// So many connections at once, four kinds in turn: silent, with a handshake and nothing more, with half a head, and with
/// the head of a large body that never comes.
fn attack(served: &Arc<Served>, many: u32, from: impl Fn(u32) -> Ipv4Addr) -> Attack {
    let (arrived, came) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let addresses: Vec<Ipv4Addr> = (0..many).map(from).collect();
    let served = served.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let all = addresses.into_iter().zip(0..).map(|(from, n)| come(&served, from, n));
            let held = futures::future::join_all(all).await;
            let _ = arrived.send(());
            let _ = released.await;
            drop(held);
        });
    });
    Attack { came, _release: release }
}

/// Gives the connection, where it could be made.
async fn come(
    served: &Served,
    from: Ipv4Addr,
    n: u32,
) -> io::Result<(Option<TcpStream>, Option<TlsStream<TcpStream>>)> {
    const HEAD: &str = "POST /call HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000\r\n";
    let words = match n % 4 {
        0 => return Ok((Some(served.connect(from).await?), None)),
        1 => String::new(),
        2 => HEAD.to_owned(),
        _ => format!("{HEAD}authorization: good\r\n\r\n"),
    };
    let mut stream = served.shake(from).await?;
    stream.write_all(words.as_bytes()).await?;
    Ok((None, Some(stream)))
}

/// A hundred calls, each on a connection of its own from an address of its own, as pods are. All must be served.
async fn honest_beside(served: &Served, what: &str) {
    const CALLS: usize = 100;
    let mut took = Vec::new();
    for n in 0..CALLS {
        let from = Ipv4Addr::new(127, 3, 0, u8::try_from(n).expect("few") + 1);
        let begun = Instant::now();
        let status = tokio::time::timeout(PATIENCE, served.honest(from)).await.expect("an answer");
        took.push(begun.elapsed());
        assert_eq!(status.expect("an answer"), "HTTP/1.1 200 OK", "{what}: every honest call is served");
    }
    took.sort();
    let [half, most] = [CALLS / 2, CALLS * 99 / 100].map(|at| took[at]);
    println!("{what}: honest calls with their handshakes p50 {half:?}, p99 {most:?}; {} kB resident", resident());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_connections_of_one_address_leave_others_alone() {
    allow_files();
    let served = Arc::new(serve(limits()));
    honest_beside(&served, "alone").await;
    let mut attack = attack(&served, 2000, |_| Ipv4Addr::new(127, 0, 0, 2));
    honest_beside(&served, "while 2,000 connections of one address come").await;
    (&mut attack.came).await.expect("no panic");
    honest_beside(&served, "beside those that stayed").await;
    let refused: u64 = ["address", "handshakes", "rate"].iter().map(|why| served.stats.refusals(why)).sum();
    println!("{refused} of 2,000 were refused by the address");
    assert!(refused >= 1_500, "only {refused} of 2,000 were refused");
    assert_eq!(served.stats.refusals("full"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_places_are_taken_others_are_served() {
    allow_files();
    let served = Arc::new(serve(Limits { connections: 128, ..limits() }));
    let mut attack = attack(&served, 500, |n| Ipv4Addr::new(127, 2, 0, 1 + u8::try_from(n % 50).expect("few")));
    honest_beside(&served, "while 500 connections of fifty addresses come, where 128 have a place").await;
    (&mut attack.came).await.expect("no panic");
    honest_beside(&served, "beside those that stayed").await;
}

/// Both ends of some thousand connections are in this process.
fn allow_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(16_384)), hard);
    }
}

#[tokio::test]
async fn whoever_proves_nothing_is_sent_away() {
    let served = serve(Limits { proof: Some(Duration::from_secs(2)), ..limits() });
    let says = async |words: &str| {
        let mut stream = served.shake(Ipv4Addr::new(127, 0, 0, 9)).await.expect("a handshake");
        stream.write_all(words.as_bytes()).await.expect("sent");
        String::from_utf8(ended(stream).await).expect("text")
    };
    let (silent, half, bad, chatty) = tokio::join!(
        says(""),
        says("POST /call HTTP/1.1\r\nhost: x\r\n"),
        // Refused before a byte of the body is there: the answer does not wait for it, and the connection ends.
        says("POST /call HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"),
        // Other words prolong nothing.
        says("GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"),
    );
    assert_eq!((silent.as_str(), half.as_str()), ("", ""));
    assert!(bad.starts_with("HTTP/1.1 401 "), "{bad}");
    assert!(chatty.starts_with("HTTP/1.1 404 "), "{chatty}");
}

#[tokio::test]
async fn whoever_is_known_stays_until_idle() {
    let limits = Limits { idle: Duration::from_secs(1), ..limits() };
    let served = serve(limits);
    let begun = Instant::now();
    let mut stream = served.shake(Ipv4Addr::new(127, 0, 0, 9)).await.expect("a handshake");
    for _ in 0..3 {
        stream.write_all(CALL.as_bytes()).await.expect("sent");
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).await.expect("an answer");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
    }
    assert!(ended(stream).await.is_empty());
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was not idle for long enough");
}

#[tokio::test]
async fn large_heads_are_refused() {
    let served = serve(limits());
    let me = Ipv4Addr::new(127, 0, 0, 9);
    let long = "x".repeat(20_000);
    let many = "h: x\r\n".repeat(40);
    for head in [format!("authorization: {long}\r\n"), many] {
        let mut stream = served.shake(me).await.expect("a handshake");
        // It may be refused before all of it was sent.
        let _ = stream.write_all(format!("POST /call HTTP/1.1\r\nhost: x\r\n{head}\r\n").as_bytes()).await;
        let answer = String::from_utf8_lossy(&ended(stream).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn an_http2_connection_is_small() {
    let served = serve(Limits { proof: Some(Duration::from_secs(1)), ..limits() });
    let mut stream = served.shake(Ipv4Addr::new(127, 0, 0, 9)).await.expect("a handshake");
    // The preface, and a SETTINGS frame without any.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let answer = ended(stream).await;
    assert_eq!(answer.get(3), Some(&4), "SETTINGS come first");
    let length = usize::from(answer[1]) << 8 | usize::from(answer[2]);
    let settings: Vec<(u16, u32)> = answer[9..9 + length]
        .chunks_exact(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
        .collect();
    let of = |id| settings.iter().find(|(of, _)| *of == id).map(|(_, value)| *value);
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE
    assert_eq!((of(3), of(4), of(6)), (Some(4), Some(32 * 1024), Some(16 * 1024)), "{settings:?}");
}

#[tokio::test]
async fn told_to_stop_it_ends_in_peace() {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stopper, stop) = watch::channel(false);
    let router = Router::new().route("/call", post(call));
    let server = Server { limits: Limits::default(), security: Security::Plain, stats: Stats::default(), router };
    let serving = tokio::spawn(server.serve(listener, stop));
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(CALL.as_bytes()).await.expect("sent");
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
    stopper.send_replace(true);
    assert!(ended(stream).await.is_empty());
    tokio::time::timeout(PATIENCE, serving).await.expect("it stops").expect("in peace");
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn loopback_addresses_count_one_by_one() {
    let network = |last| table::network(IpAddr::from([127, 0, 0, last]));
    assert_ne!(network(2), network(3));
}
