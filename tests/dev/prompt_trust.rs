//! Endpoints whose certificate an authority of their own has signed, and whom a prompt trusts.

use std::fmt::Write as _;

use nix::sys::signal::Signal;

use super::authority::Authority;
use super::model::{Answer, Model};
use super::place::{Place, run};
use super::prompt::go;

const HERE: &str = "127.0.0.1";
const LATER: i32 = 2999;

fn agent(case: &str, url: &str, authorities: &str) -> String {
    let authorities =
        if authorities.is_empty() { String::new() } else { format!("    caConfigMapRef: {authorities}\n") };
    format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {case}}}\nspec:\n  retry: {{maxAttempts: 1}}\n  prompt:\n    system: Count.\n    model: small\n    baseURL: {url}\n{authorities}---\n"
    )
}

fn config_map(name: &str, key: &str, content: &str) -> String {
    let lines = content.lines().fold(String::new(), |mut all, line| {
        writeln!(all, "    {line}").expect("a text takes it");
        all
    });
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  {key}: |\n{lines}---\n")
}

#[test]
fn an_endpoint_of_a_private_authority_is_trusted_where_its_agent_says_so() {
    let place = Place::new("prompt-trust");
    let (own, stranger, anew) = (Authority::new("own"), Authority::new("stranger"), Authority::new("own"));
    let cases = ["right", "bundle", "foreign", "renamed", "browsers", "garbage", "no-certificate"];
    let script =
        |cases: &[&'static str]| cases.iter().map(|case| (*case, vec![Answer::Says("three")])).collect::<Vec<_>>();
    let model = Model::start_tls(HERE, &script(&cases), own.server(HERE, LATER));
    let expired = Model::start_tls(HERE, &script(&["expired"]), own.server(HERE, 2002));
    let named = Model::start_tls(HERE, &script(&["named"]), own.server("models.example", LATER));
    let key = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let maps = [
        config_map("own", "ca.crt", &own.pem),
        config_map("both", "roots.pem", &format!("{}{}", stranger.pem, own.pem)),
        config_map("stranger", "ca.crt", &stranger.pem),
        config_map("anew", "ca.crt", &anew.pem),
        config_map("garbage", "ca.crt", "not: a certificate"),
        config_map("no-certificate", "ca.crt", key),
    ];
    let field = "spec.prompt.caConfigMapRef";
    // Model, case, whom its Agent trusts, and the words of its end where it fails.
    let cases: [(&Model, &str, &str, String); 9] = [
        (&model, "right", "{name: own}", String::new()),
        (&model, "bundle", "{name: both, key: roots.pem}", String::new()),
        (&model, "foreign", "{name: stranger}", format!("is signed by no authority that {field} names")),
        (&model, "renamed", "{name: anew}", format!("is signed by no authority that {field} names")),
        (
            &model,
            "browsers",
            "",
            format!(
                "is signed by no authority that browsers trust; name a ConfigMap with the certificate of its authority in {field}"
            ),
        ),
        (
            &model,
            "garbage",
            "{name: garbage}",
            format!("{field}: what the ConfigMap has under that key holds no certificate; put"),
        ),
        (
            &model,
            "no-certificate",
            "{name: no-certificate}",
            format!("{field}: what the ConfigMap has under that key holds no certificate that can be read; put"),
        ),
        (&expired, "expired", "{name: own}", "the endpoint's certificate has expired; renew it there".to_owned()),
        (
            &named,
            "named",
            "{name: own}",
            "the endpoint's certificate is for another name; use a name of the certificate in spec.prompt.baseURL"
                .to_owned(),
        ),
    ];
    let agents: String =
        cases.iter().map(|(model, case, trusts, _)| agent(case, &model.url(HERE, case), trusts)).collect();
    let steps: Vec<String> = cases
        .iter()
        .map(|(_, case, ..)| format!("  - {{name: {case}, agentId: {case}, onFailure: Continue}}\n"))
        .collect();
    let run = format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: all}}\nspec:\n  order: Graph\n  output: \"[steps.right.output, steps.bundle.output]\"\n  steps:\n{}",
        steps.concat()
    );
    place.write("all.yaml", &format!("{}{agents}{run}", maps.concat()));
    let ran = go(&place, &["-f", "all.yaml", "--jobs", "9"]).expect(0);
    assert_eq!(place.read(".lockstep/all/output.json"), "[\"three\",\"three\"]\n", "{}", ran.err);
    for (model, case, _, words) in &cases {
        let is_told =
            ran.err.lines().any(|line| line.contains(&format!("{case}: Unrecoverable: ")) && line.contains(words));
        assert_eq!(is_told, !words.is_empty(), "{case}: {words}\n{}", ran.err);
        assert_eq!(
            model.asked(case).len(),
            usize::from(words.is_empty()),
            "{case}: nothing is said to whom nobody trusts"
        );
    }
}

#[test]
fn authorities_that_are_missing_or_of_no_use_are_told_by_their_field() {
    let place = Place::new("prompt-trust-missing");
    let (model, own) = (Model::start(HERE, &[]), Authority::new("own"));
    place.write("plain.yaml", &agent("planner", &model.url(HERE, "planner"), "{name: own}"));
    place.write("name.yaml", &agent("planner", "https://models.example/v1", "{name: Own_CA}"));
    for (file, words) in [
        ("plain.yaml", "spec.prompt.caConfigMapRef: goes with a baseURL that begins with https://"),
        ("name.yaml", "spec.prompt.caConfigMapRef.name"),
    ] {
        let told = go(&place, &["-f", file]).expect(2).err;
        assert!(told.contains(words), "{words}: {told}");
    }
    // As a pod it waits for what is missing, and says what.
    let agent = agent("planner", "https://models.example/v1", "{name: own}");
    for (file, map, words) in [
        ("missing.yaml", String::new(), "ConfigMap own not found; put it into a file that -f names"),
        ("no-key.yaml", config_map("own", "roots.pem", &own.pem), "couldn't find key ca.crt in ConfigMap own"),
    ] {
        place.write(file, &format!("{agent}{map}{}", run("waits", "    - {name: plan, agentId: planner}")));
        let mut waits = place.start(&["-f", file, "--fresh"]);
        let told = waits.until(words).unwrap_or_default();
        assert!(told.contains("; spec.prompt.caConfigMapRef of the Agent asks for it"), "{file}: {told}");
        waits.signal(Signal::SIGTERM);
        waits.ended().expect(130);
    }
}
