//! Wiring: who is woken by what, and one reconcile a kind, each the same four lines: observe, decide, apply, publish.

pub mod context;
mod decision;
mod egress;
pub mod history;
mod memories;
mod notify;
pub mod reconcile;
mod unreadable;
pub mod wakes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api::name::{LABEL_STEP_RUN, OPERATOR};
use crate::api::{StepRun, Workflow};
use crate::cluster::cache::{Cache, Watched, ready};
use crate::cluster::client::{bounded, connect};
use crate::cluster::clock::Clock;
use crate::cluster::consistency::Consistency;
use crate::cluster::contents::{Contents, SettledRuns};
use crate::cluster::evaluator::Evaluator;
use crate::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use crate::cluster::lease::{Elector, Leadership};
use crate::cluster::observe::Observer;
use crate::cluster::pod_events::{self, PodEvents};
use crate::cluster::refusals::Refusals;
use crate::cluster::revisions::Revisions;
use crate::cluster::sinks::{SinkOptions, Sinks};
use crate::cluster::slots::Slots;
use crate::cluster::world::World;
use crate::cluster::{Error, tls};
use crate::decide::build::{Installation, quantities};
use crate::decide::egress::{Network, rules_of, to_service};
use crate::definition::agent::Block;
use crate::telemetry::traces::{self, Traces};
use crate::telemetry::{Health, Metrics};
use context::{Context, guarded};
use wakes::Wakes;

/// How the operator is told where it is. The chart sets all of it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Namespace of the operator and its gateway.
    #[arg(long, env = "LOCKSTEP_NAMESPACE", default_value = "lockstep-system")]
    pub namespace: String,
    /// Image that holds the shim; it is copied into every agent's pod.
    #[arg(long, env = "LOCKSTEP_IMAGE")]
    pub image: String,
    #[arg(long, env = "LOCKSTEP_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Name of the gateway's Service.
    #[arg(long, env = "LOCKSTEP_GATEWAY_SERVICE", default_value = "lockstep-gateway")]
    pub gateway_service: String,
    /// How pods reach the gateway: by DNS name, or by the Service's cluster IP where pods have no DNS.
    #[arg(long, env = "LOCKSTEP_GATEWAY_REACH", default_value = "dns")]
    pub gateway_reach: Reach,
    /// Secret that keeps the gateway's CA and certificate.
    #[arg(long, env = "LOCKSTEP_TLS_SECRET", default_value = "lockstep-gateway-tls")]
    pub tls_secret: String,
    /// Name of the HTTP API's Service, whose certificate is made then; none where there is no such Service, or it has another certificate.
    #[arg(long, env = "LOCKSTEP_API_SERVICE", default_value = "")]
    pub api_service: String,
    /// Secret that keeps the HTTP API's certificate.
    #[arg(long, env = "LOCKSTEP_API_TLS_SECRET", default_value = "lockstep-api-tls")]
    pub api_tls_secret: String,
    /// Where the HTTP API is reached, as Triggers tell it; none where there is no such API.
    #[arg(long, env = "LOCKSTEP_API_URL", default_value = "")]
    pub api_url: String,
    #[arg(
        long,
        env = "LOCKSTEP_OPERATOR_ACCOUNT",
        default_value = "system:serviceaccount:lockstep-system:lockstep-operator"
    )]
    pub operator_account: String,
    #[arg(
        long,
        env = "LOCKSTEP_GATEWAY_ACCOUNT",
        default_value = "system:serviceaccount:lockstep-system:lockstep-gateway"
    )]
    pub gateway_account: String,
    /// Who makes the pods of Jobs, as the API server names them.
    #[arg(long, env = "LOCKSTEP_JOB_CONTROLLER_ACCOUNT", default_value = JOB_CONTROLLER)]
    pub job_controller_account: String,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "LOCKSTEP_METRICS_LISTEN", default_value = "0.0.0.0:8080")]
    pub metrics_listen: SocketAddr,
    /// Work only while holding the Lease: of several replicas one works, the others stand by with their caches filled.
    #[arg(long, env = "LOCKSTEP_LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// The Lease, in the operator's namespace.
    #[arg(long, env = "LOCKSTEP_LEASE_NAME", default_value = "lockstep-operator")]
    pub lease_name: String,
    /// Passes that may run at once, for each kind.
    #[arg(long, env = "LOCKSTEP_CONCURRENCY", default_value_t = 16)]
    pub concurrency: u16,
    /// Processes that evaluate expressions and schemas at once, one of them what takes long; a spare one stands ready.
    #[arg(long, env = "LOCKSTEP_EVALUATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub evaluators: u16,
    /// Whether the API server writes who decides and who answers: the commands that are told to people are shorter then.
    #[arg(long, env = "LOCKSTEP_STAMPS_NAMES", default_value_t = false, action = clap::ArgAction::Set)]
    pub stamps_names: bool,
    /// Attempts that may run at once in one namespace, the oldest run first; 0 for no limit.
    #[arg(long, env = "LOCKSTEP_MAX_CONCURRENT_PER_NAMESPACE", default_value_t = 0)]
    pub max_concurrent_per_namespace: usize,
    /// How attempts whose Agent limits their egress reach DNS: rules as in `egress` of a NetworkPolicy, as JSON.
    #[arg(long, env = "LOCKSTEP_AGENT_DNS", default_value = "")]
    pub agent_dns: String,
    /// Blocks of addresses that are no part of the Internet for attempts, besides those that are private everywhere.
    #[arg(long, env = "LOCKSTEP_AGENT_PRIVATE", default_value = "", value_delimiter = ',')]
    pub agent_private: Vec<String>,
    /// What the sidecar of a container that is left as it is asks for and may take, by resource, as JSON.
    #[arg(long, env = "LOCKSTEP_ATTENDANT", default_value = "")]
    pub attendant: String,
    /// What the container of an Agent that is only a prompt asks for and may take, by resource, as JSON.
    #[arg(long, env = "LOCKSTEP_PROMPT", default_value = "")]
    pub prompt: String,
    #[command(flatten)]
    pub traces: traces::OtlpOptions,
    #[command(flatten)]
    pub sinks: SinkOptions,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Dns,
    #[value(name = "clusterIP", alias = "cluster-ip")]
    ClusterIp,
}

/// Runs the operator until SIGTERM; an error ends the process, and Kubernetes starts it again. The lease has a client of its own:
/// when the API server is slow, renewing it must not wait behind the calls of passes.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let (client, for_lease) = (connect(OPERATOR, 32).await?, connect(OPERATOR, 2).await?);
    let sinks = Sinks::open(&options.sinks)?;
    let metrics = Arc::new(Metrics::default());
    let health = Health::new(Arc::clone(&metrics));
    let listening = tokio::spawn(health.clone().serve(options.metrics_listen));
    // From the first moment on: as process 1 of a container it would not even notice a SIGTERM that nothing handles, and
    // whoever replaces it would wait for the end of the grace period.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let (installation, names) = tokio::select! {
        found = installation(&options, &client) => found?,
        _ = terminate.recv() => return Ok(()),
    };
    let installation = Arc::new(installation);
    let renewing = renew(client.clone(), options.clone(), names);
    let accounts = Accounts {
        operator: options.operator_account.clone(),
        gateway: options.gateway_account.clone(),
        job_controller: options.job_controller_account.clone(),
    };
    let observer = Observer {
        client: client.clone(),
        clock: Clock::default(),
        world: World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: SettledRuns::default(),
        guard: Box::new(PolicyGuard::new(&accounts)?),
        installation,
        evaluator: Evaluator::new(options.evaluators),
        slots: Slots::new(options.max_concurrent_per_namespace),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
    };
    let recorder =
        Recorder::new(client, Reporter { controller: OPERATOR.to_owned(), instance: std::env::var("HOSTNAME").ok() });
    let traces = Traces::open(&options.traces, OPERATOR)?;
    let context = Context::new(observer, recorder, metrics).with_traces(traces.clone()).with_sinks(sinks);
    let context = Arc::new(context);
    let lease = (options.namespace.as_str(), options.lease_name.as_str());
    let mut elector = Elector::new(for_lease, lease, identity(), Clock::default());
    let ended = tokio::select! {
        why = work(&options, Arc::clone(&context), health, &mut elector) => why,
        () = renewing => "renewing the certificate ended".to_owned(),
        served = listening => format!("the metrics listener ended: {served:?}"),
        _ = terminate.recv() => {
            tracing::info!("SIGTERM: stopping");
            String::new()
        }
    };
    // Only when no pass runs any more may another begin: where leading was lost there is nothing to give back.
    context.quiet().await;
    elector.leave().await;
    traces.close().await;
    anyhow::ensure!(ended.is_empty(), ended);
    Ok(())
}

/// The operator without what surrounds it in its process: stands by, leads and works. Returns why it ended; what it has
/// begun ends with it.
pub async fn work(options: &Options, context: Arc<Context>, health: Health, elector: &mut Elector) -> String {
    let leadership = elector.leadership();
    tokio::select! {
        biased;
        what = supervise(options, context, health, leadership) => what,
        why = elector.run(), if options.leader_elect => why.to_owned(),
    }
}

/// The pod's name: who starts again in its place finds its own lease, and goes on at once.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| OPERATOR.to_owned());
    format!("{host}_{}", std::process::id())
}

/// Twice a day: the certificate is renewed a month before its end, and the gateway reads it again every hour.
async fn renew(client: Client, options: Options, names: Vec<String>) {
    let mut due = tokio::time::interval(Duration::from_secs(12 * 3600));
    loop {
        due.tick().await;
        let (namespace, secret) = (&options.namespace, &options.tls_secret);
        if let Err(error) = tls::ensure(&client, namespace, secret, &names).await {
            tracing::warn!(%error, "the gateway's certificate could not be checked");
        }
        certify_api(&options, &client).await;
    }
}

async fn service_of(client: &Client, namespace: &str, service: &str) -> anyhow::Result<Option<Service>> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    Ok(bounded("GET services", api.get_opt(service)).await?)
}

/// Names under which a Service is reached, and its address; an empty one where it is not there.
fn names_of((namespace, service): (&str, &str), found: Option<&Service>) -> (Vec<String>, String) {
    let address = found.and_then(|found| found.spec.as_ref()?.cluster_ip.clone()).unwrap_or_default();
    let mut names = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        service.to_owned(),
    ];
    if address.parse::<std::net::IpAddr>().is_ok() {
        names.push(address.clone());
    }
    (names, address)
}

/// The HTTP API waits for its certificate; the operator does not wait for the API.
async fn certify_api(options: &Options, client: &Client) {
    if options.api_service.is_empty() {
        return;
    }
    let (namespace, secrets) = (&options.namespace, (options.tls_secret.as_str(), options.api_tls_secret.as_str()));
    let certified = async {
        let found = service_of(client, namespace, &options.api_service).await?;
        let (mut names, _) = names_of((namespace, &options.api_service), found.as_ref());
        // For kubectl port-forward.
        names.push("localhost".to_owned());
        anyhow::Ok(tls::ensure_signed(client, namespace, secrets, &names).await?)
    };
    if let Err(error) = certified.await {
        tracing::warn!(error = format!("{error:#}"), "the certificate of the HTTP API could not be made");
    }
}

/// What pods must know: the gateway's address, and the CA that it is trusted by.
async fn installation(options: &Options, client: &Client) -> anyhow::Result<(Installation, Vec<String>)> {
    let (service, namespace) = (&options.gateway_service, &options.namespace);
    let found = service_of(client, namespace, service).await?;
    let (names, address) = names_of((namespace, service), found.as_ref());
    anyhow::ensure!(!address.is_empty(), "there is no Service {service} with an address in the namespace {namespace}");
    let gateway_ca = tls::ensure(client, namespace, &options.tls_secret, &names).await?;
    certify_api(options, client).await;
    let host = if options.gateway_reach == Reach::ClusterIp { &address } else { &names[0] };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let installation = Installation {
        image: options.image.clone(),
        image_pull_policy: options.image_pull_policy.clone(),
        gateway_url: format!("https://{host}:443"),
        gateway_ca,
        api_url: options.api_url.clone(),
        account: options.operator_account.clone(),
        stamps_names: options.stamps_names,
        network: network(options, found.as_ref())?,
        attendant: quantities(&options.attendant).map_err(|fault| anyhow::anyhow!("LOCKSTEP_ATTENDANT: {fault}"))?,
        prompt: quantities(&options.prompt).map_err(|fault| anyhow::anyhow!("LOCKSTEP_PROMPT: {fault}"))?,
    };
    Ok((installation, names))
}

/// What attempts reach whatever their Agent says, and what is no Internet here.
fn network(options: &Options, gateway: Option<&Service>) -> anyhow::Result<Network> {
    let dns = rules_of(&options.agent_dns).map_err(|fault| anyhow::anyhow!("LOCKSTEP_AGENT_DNS: {fault}"))?;
    let blocks = options.agent_private.iter().map(|block| block.trim()).filter(|block| !block.is_empty());
    let private: Result<_, String> = blocks.map(Block::parse).collect();
    let private = private.map_err(|fault| anyhow::anyhow!("LOCKSTEP_AGENT_PRIVATE: {fault}"))?;
    Ok(Network { always: gateway.map(to_service).into_iter().chain(dns).collect(), private })
}

/// Watches everything, and reconciles everything once this one leads; returns only if something ends that must not.
async fn supervise(
    options: &Options,
    context: Arc<Context>,
    health: Health,
    leadership: watch::Receiver<Leadership>,
) -> String {
    let (wakes, mut queues) = Wakes::new();
    let wakes = Arc::new(wakes);
    let mut watching = watches(&context, &wakes);
    let standby = async {
        if !filled(&context.observer.world).await {
            return "a watch ended before its first list".to_owned();
        }
        health.set_ready();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), gateway = %context.observer.installation.gateway_url, "ready");
        if options.leader_elect { led(leadership).await } else { String::new() }
    };
    let why = tokio::select! {
        biased;
        // Who leads looks at every object; till then a full queue would hold up the watches.
        () = queues.discard() => "the queues ended".to_owned(),
        why = standby => why,
        _ = watching.join_next() => "a watch ended".to_owned(),
    };
    if !why.is_empty() {
        return why;
    }
    context.observer.restore_slots();
    context.leads();
    let (n, world) = (options.concurrency, &context.observer.world);
    tokio::select! {
        biased;
        () = drive("Workflow", &world.workflows, queues.workflows, (&context, n), reconcile::workflow) => {}
        () = drive("StepRun", &world.step_runs, queues.step_runs, (&context, n), reconcile::step_run) => {}
        () = drive("Agent", &world.agents, queues.agents, (&context, n), reconcile::agent) => {}
        () = drive("WorkflowTemplate", &world.templates, queues.templates, (&context, n), reconcile::template) => {}
        () = drive("Trigger", &world.triggers, queues.triggers, (&context, n), reconcile::trigger) => {}
        () = drive("Document", &world.documents, queues.documents, (&context, n), reconcile::document) => {}
        () = notifying(&context, (queues.notified_runs, queues.notified_steps), n) => {}
        () = memories::sweep(&context) => {}
        () = egress::sweep(&context) => {}
        () = unreadable::tell(&context, &wakes) => {}
        () = wakes.turns(&context.observer.slots) => {}
        () = wakes.answers(&context.observer.evaluator) => {}
        _ = watching.join_next() => {}
    }
    "a controller or a watch ended".to_owned()
}

/// Passes that tell receivers outside of the cluster, for ever; where there are none nothing is looked at.
async fn notifying(
    context: &Arc<Context>,
    (runs, steps): (mpsc::Receiver<ObjectRef<Workflow>>, mpsc::Receiver<ObjectRef<StepRun>>),
    concurrency: u16,
) {
    if context.sinks.is_empty() {
        return std::future::pending().await;
    }
    let world = &context.observer.world;
    futures::join!(
        drive("Notification of a Workflow", &world.workflows, runs, (context, concurrency), notify::run),
        drive("Notification of a StepRun", &world.step_runs, steps, (context, concurrency), notify::step_run),
    );
}

/// Whether every cache has had its first list.
async fn filled(world: &World) -> bool {
    let all = [
        ready(&world.agents).await,
        ready(&world.templates).await,
        ready(&world.triggers).await,
        ready(&world.workflows).await,
        ready(&world.step_runs).await,
        ready(&world.documents).await,
        ready(&world.jobs).await,
        ready(&world.pods).await,
    ];
    all.iter().all(|ready| *ready)
}

/// Waits until this one leads; the reason why it never will, or nothing.
async fn led(mut leadership: watch::Receiver<Leadership>) -> String {
    match leadership.wait_for(|leadership| *leadership == Leadership::Leading).await {
        Ok(_) => String::new(),
        Err(_) => "the election ended".to_owned(),
    }
}

/// One task a kind, which all end with the set.
fn watches(context: &Arc<Context>, wakes: &Arc<Wakes>) -> JoinSet<()> {
    type Pick<K> = fn(&World) -> &Arc<Cache<K>>;
    fn one<K: Watched, W: Future<Output = ()> + Send + 'static>(
        (context, wakes): (&Arc<Context>, &Arc<Wakes>),
        pick: Pick<K>,
        config: watcher::Config,
        wake: fn(Arc<Wakes>, Arc<Context>, Arc<K>) -> W,
    ) -> impl Future<Output = ()> + Send + use<K, W> {
        let (context, wakes) = (Arc::clone(context), Arc::clone(wakes));
        let cache = Arc::clone(pick(&context.observer.world));
        let api = Api::all(context.observer.client.clone());
        cache.run(api, config, move |object| wake(Arc::clone(&wakes), Arc::clone(&context), object))
    }
    let both = (context, wakes);
    let all = watcher::Config::default;
    let ours = || watcher::Config::default().labels(LABEL_STEP_RUN);
    let mut set = JoinSet::new();
    set.spawn(one(both, |w| &w.agents, all(), |t, c, o| async move { t.agent(&c.observer.world, &o).await }));
    set.spawn(one(both, |w| &w.templates, all(), |t, c, o| async move { t.template(&c.observer.world, &o).await }));
    set.spawn(one(both, |w| &w.triggers, all(), |t, _, o| async move { t.trigger(&o).await }));
    set.spawn(one(
        both,
        |w| &w.workflows,
        all(),
        |t, c, o| async move {
            if !c.sinks.is_empty() {
                t.notify_of_run(&o).await;
            }
            t.workflow(&c.observer.world, &o).await;
        },
    ));
    set.spawn(one(
        both,
        |w| &w.step_runs,
        all(),
        |t, c, o| async move {
            c.observer.world.hear_usage(&o);
            c.observer.left(&o);
            if !c.sinks.is_empty() {
                t.notify_of_step(&o).await;
            }
            t.step_run(&o).await;
        },
    ));
    set.spawn(one(both, |w| &w.documents, all(), |t, c, o| async move { t.document(&c.observer.world, &o).await }));
    set.spawn(one(both, |w| &w.jobs, ours(), |t, _, o| async move { t.labelled_step_run(o.as_ref()).await }));
    set.spawn(one(both, |w| &w.pods, ours(), |t, c, o| async move { t.pod(&c.observer.world, &o).await }));
    for what in pod_events::WATCHED {
        let (context, wakes) = (Arc::clone(context), Arc::clone(wakes));
        set.spawn(async move {
            let (observer, wakes) = (&context.observer, &wakes);
            let told = |namespace: String, name: String| async move {
                wakes.pod_event(&observer.world, (&namespace, &name)).await;
            };
            observer.pod_events.watch(observer.client.clone(), what, told).await;
        });
    }
    set
}

async fn drive<K, R, F>(
    kind: &'static str,
    cache: &Cache<K>,
    mut queue: mpsc::Receiver<ObjectRef<K>>,
    (context, concurrency): (&Arc<Context>, u16),
    reconcile: R,
) where
    K: Watched,
    R: Fn(Arc<Context>, Arc<K>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let there: Vec<ObjectRef<K>> = cache.all().iter().map(|object| ObjectRef::from_obj(object.as_ref())).collect();
    let queue = stream::iter(there).chain(stream::poll_fn(move |context| queue.poll_recv(context)));
    let passes = applier(
        move |object: Arc<K>, context: Arc<Context>| {
            Box::pin(guarded(kind, object.meta().uid.clone(), Arc::clone(&context), reconcile(context, object)))
        },
        move |object, error, context| context.after_error(kind, object.as_ref(), error),
        Arc::clone(context),
        cache.store(),
        queue.map(Ok::<_, Error>),
        Config::default().concurrency(concurrency),
    );
    passes.for_each(|_| std::future::ready(())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_the_operator_is_consistent() {
        Options::augment_args(clap::Command::new("operator")).debug_assert();
    }
}
