//! What our containers in an agent's pod ask for, by what the agent's own has: they pass wherever that passes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type Amounts = BTreeMap<String, Quantity>;

/// What quotas and LimitRanges count; devices stay the agent's.
pub fn counted(own: &ResourceRequirements) -> ResourceRequirements {
    let counted = |of: &Option<Amounts>| {
        let mut of = of.clone()?;
        of.retain(|resource, _| matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage"));
        Some(of)
    };
    ResourceRequirements { limits: counted(&own.limits), requests: counted(&own.requests), claims: None }
}

/// The same for what runs beside the agent's container, whose sum quotas and LimitRanges of pods count: at most so much. Request
/// and limit are held to one amount, so that they are no further apart than the agent's own.
pub fn beside(own: &ResourceRequirements, most: &Amounts) -> ResourceRequirements {
    let held = |of: Option<Amounts>| {
        let mut of = of?;
        for (resource, own) in &mut of {
            if let Some(most) = most.get(resource).filter(|most| is_less(most, own)) {
                *own = most.clone();
            }
        }
        Some(of)
    };
    let ResourceRequirements { limits, requests, claims } = counted(own);
    ResourceRequirements { limits: held(limits), requests: held(requests), claims }
}

fn is_less(one: &Quantity, other: &Quantity) -> bool {
    amount(&one.0).zip(amount(&other.0)).is_some_and(|(one, other)| one < other)
}

/// What a quantity of Kubernetes is worth; none where it is no quantity.
fn amount(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        _ => 10.0_f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Amounts by resource, as the installation says them: JSON, or nothing.
pub fn quantities(text: &str) -> Result<Amounts, String> {
    if text.trim().is_empty() {
        return Ok(Amounts::new());
    }
    let amounts: Amounts = serde_json::from_str(text).map_err(|fault| fault.to_string())?;
    match amounts.iter().find(|(_, quantity)| amount(&quantity.0).is_none_or(|amount| amount <= 0.0)) {
        Some((resource, quantity)) => {
            Err(format!("{resource}: {:?} is no quantity above 0, such as 50m or 32Mi", quantity.0))
        }
        None => Ok(amounts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resources(of: Value) -> ResourceRequirements {
        serde_json::from_value(of).expect("resources")
    }

    #[test]
    fn what_runs_beside_the_agent_takes_little_and_never_more_than_the_agent() {
        let most = quantities(r#"{"cpu": "50m", "memory": "32Mi"}"#).expect("amounts");
        let all = json!({"cpu": "2", "memory": "4Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": "1"});
        let held = json!({"cpu": "50m", "memory": "32Mi", "ephemeral-storage": "1Gi"});
        for (what, own, expected) in [
            ("much", json!({"requests": all, "limits": all}), json!({"requests": held, "limits": held})),
            ("nothing", json!({}), json!({})),
            (
                "little",
                json!({"limits": {"cpu": "0.01", "memory": "16Mi"}}),
                json!({"limits": {"cpu": "0.01", "memory": "16Mi"}}),
            ),
            (
                "a small request below a large limit",
                json!({"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}}),
                json!({"requests": {"memory": "16Mi"}, "limits": {"memory": "32Mi"}}),
            ),
            ("requests alone", json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "50m"}})),
            ("no quantity", json!({"requests": {"cpu": "much"}}), json!({"requests": {"cpu": "much"}})),
        ] {
            assert_eq!(beside(&resources(own), &most), resources(expected), "{what}");
        }
        let own = resources(json!({"limits": {"cpu": "2"}}));
        assert_eq!(beside(&own, &Amounts::new()), own, "where the installation says nothing");
    }

    #[test]
    fn quantities_are_worth_what_kubernetes_takes_them_for() {
        for (text, expected) in [
            ("100m", Some(0.1)),
            ("1", Some(1.0)),
            ("0.5", Some(0.5)),
            ("1e3", Some(1000.0)),
            ("2E", Some(2e18)),
            ("1k", Some(1000.0)),
            ("64Mi", Some(67_108_864.0)),
            ("1Gi", Some(1_073_741_824.0)),
            ("", None),
            ("Mi", None),
            ("64MiB", None),
            ("ten", None),
        ] {
            let found = amount(text);
            let is_same = |(a, b): (f64, f64)| (a - b).abs() <= a.abs() * 1e-12;
            assert!(found.zip(expected).map_or(found.is_none() && expected.is_none(), is_same), "{text}: {found:?}");
        }
        for (text, words) in [("{", "EOF"), (r#"{"cpu": "ten"}"#, "cpu: \"ten\""), (r#"{"cpu": "0"}"#, "above 0")] {
            let fault = quantities(text).expect_err("refused");
            assert!(fault.contains(words), "{text}: {fault}");
        }
        assert_eq!(quantities(" "), Ok(Amounts::new()));
    }
}
