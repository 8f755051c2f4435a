//! The CA that signs the gateway's certificate: made once, kept in a Secret, renewed a month before its end.

#![expect(clippy::disallowed_methods, reason = "certificates have dates")]

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::Error;
use super::client::bounded;

pub const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
pub const CERT: &str = "tls.crt";
pub const KEY: &str = "tls.key";
/// On the Secret: when the certificate ends, and for what names it is.
const NOT_AFTER: &str = "lockstep.dev/not-after";
const NAMES: &str = "lockstep.dev/names";
const LEAF_DAYS: i64 = 365;
const RENEW_DAYS: i64 = 30;

/// Makes sure that the Secret holds a certificate for these names; gives the CA as PEM.
pub async fn ensure(client: &Client, namespace: &str, secret: &str, names: &[String]) -> Result<String, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..5 {
        let found = bounded("GET secrets", api.get_opt(secret)).await?;
        if let Some(ca) = found.as_ref().filter(|s| is_good(s, names)).and_then(ca_of) {
            return Ok(ca);
        }
        let made = make(found.as_ref(), secret, names)
            .map_err(|e| Error::Unusable(format!("cannot make the gateway's certificate: {e}")))?;
        let written = match &found {
            None => bounded("POST secrets", api.create(&PostParams::default(), &made)).await,
            Some(_) => bounded("PUT secrets", api.replace(secret, &PostParams::default(), &made)).await,
        };
        match written {
            Ok(written) => {
                return ca_of(&written)
                    .ok_or_else(|| Error::Unusable("the Secret came back without its CA".to_owned()));
            }
            // Another operator was first: use what it made.
            Err(error) if error.is_conflict() || error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Unusable(format!("Secret {secret} keeps changing")))
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    secret.data.as_ref()?.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
}

fn ca_of(secret: &Secret) -> Option<String> {
    text(secret, CA)
}

fn is_good(secret: &Secret, names: &[String]) -> bool {
    let annotation =
        |key: &str| secret.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default();
    let lives = annotation(NOT_AFTER)
        .parse::<Timestamp>()
        .is_ok_and(|end| end > Timestamp::now() + SignedDuration::from_hours(24 * RENEW_DAYS));
    lives
        && annotation(NAMES) == names.join(",")
        && [CA, CA_KEY, CERT, KEY].iter().all(|key| text(secret, key).is_some())
}

/// Keeps the CA if there is one: pods that run trust it.
fn make(found: Option<&Secret>, secret: &str, names: &[String]) -> Result<Secret, rcgen::Error> {
    let kept = found.and_then(|s| Some((text(s, CA)?, text(s, CA_KEY)?)));
    let (ca_pem, ca_key) = if let Some((pem, key)) = kept {
        (pem, KeyPair::from_pem(&key)?)
    } else {
        let key = KeyPair::generate()?;
        (ca_params().self_signed(&key)?.pem(), key)
    };
    let issuer = Issuer::new(ca_params(), &ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name.push(DnType::CommonName, "lockstep-gateway");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let end = validity(&mut leaf, LEAF_DAYS);
    let certificate = leaf.signed_by(&key, &issuer)?;
    let data = [(CA, ca_pem), (CA_KEY, ca_key.serialize_pem()), (CERT, certificate.pem()), (KEY, key.serialize_pem())];
    let mut metadata = found.map(|s| s.metadata.clone()).unwrap_or_default();
    metadata.name = Some(secret.to_owned());
    metadata.managed_fields = None;
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    annotations.insert(NOT_AFTER.to_owned(), end.to_string());
    annotations.insert(NAMES.to_owned(), names.join(","));
    Ok(Secret {
        metadata,
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// The same every time, so that a kept CA can sign again. Its subject differs from the leaf's: with equal names OpenSSL
/// clients take the leaf for self-signed.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "lockstep-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Valid from yesterday, for clocks that are behind, until `days` from now.
fn validity(params: &mut CertificateParams, days: i64) -> Timestamp {
    let date = |at: Timestamp| {
        let civil = at.to_zoned(k8s_openapi::jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(civil.year()), civil.month().unsigned_abs(), civil.day().unsigned_abs())
    };
    let now = Timestamp::now();
    let end = now + SignedDuration::from_hours(24 * days);
    params.not_before = date(now - SignedDuration::from_hours(24));
    params.not_after = date(end);
    end
}
