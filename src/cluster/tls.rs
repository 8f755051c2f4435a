//! The CA that signs the certificates of gateway and API: made once, kept in a Secret. Certificates are renewed a month before
//! their end.

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
        if let Some(ca) = found.as_ref().filter(|s| is_good(s, names, &[CA, CA_KEY, CERT, KEY])).and_then(ca_of) {
            return Ok(ca);
        }
        let made = make(found.as_ref(), secret, names)
            .map_err(|e| Error::Unusable(format!("cannot make the gateway's certificate: {e}")))?;
        match write(&api, found.as_ref(), secret, &made).await {
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

/// Makes sure that the Secret holds a certificate for these names, signed by the CA of another Secret; the CA's key stays there.
pub async fn ensure_signed(
    client: &Client,
    namespace: &str,
    (ca, secret): (&str, &str),
    names: &[String],
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let authority = bounded("GET secrets", api.get(ca)).await?;
    for _ in 0..5 {
        let found = bounded("GET secrets", api.get_opt(secret)).await?;
        let is_ours = |s: &Secret| is_good(s, names, &[CA, CERT, KEY]) && ca_of(s) == ca_of(&authority);
        if found.as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        let made = signed(&authority, found.as_ref(), secret, names)
            .map_err(|e| Error::Unusable(format!("cannot make the certificate of the API: {e}")))?;
        match write(&api, found.as_ref(), secret, &made).await {
            Ok(_) => return Ok(()),
            // Another operator was first: look at what it made.
            Err(error) if error.is_conflict() || error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Unusable(format!("Secret {secret} keeps changing")))
}

async fn write(api: &Api<Secret>, found: Option<&Secret>, name: &str, made: &Secret) -> Result<Secret, Error> {
    match found {
        None => bounded("POST secrets", api.create(&PostParams::default(), made)).await,
        Some(_) => bounded("PUT secrets", api.replace(name, &PostParams::default(), made)).await,
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    secret.data.as_ref()?.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
}

fn ca_of(secret: &Secret) -> Option<String> {
    text(secret, CA)
}

fn is_good(secret: &Secret, names: &[String], keys: &[&str]) -> bool {
    let annotation =
        |key: &str| secret.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default();
    let lives = annotation(NOT_AFTER)
        .parse::<Timestamp>()
        .is_ok_and(|end| end > Timestamp::now() + SignedDuration::from_hours(24 * RENEW_DAYS));
    lives && annotation(NAMES) == names.join(",") && keys.iter().all(|key| text(secret, key).is_some())
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
    let Leaf { certificate, key, end } = leaf(&ca_key, "lockstep-gateway", names)?;
    let data = [(CA, ca_pem), (CA_KEY, ca_key.serialize_pem()), (CERT, certificate), (KEY, key)];
    Ok(secret_with(found, secret, names, end, data))
}

/// With the CA of another Secret.
fn signed(authority: &Secret, found: Option<&Secret>, secret: &str, names: &[String]) -> Result<Secret, rcgen::Error> {
    let (Some(ca_pem), Some(ca_key)) = (ca_of(authority), text(authority, CA_KEY)) else {
        return Err(rcgen::Error::CouldNotParseKeyPair);
    };
    let Leaf { certificate, key, end } = leaf(&KeyPair::from_pem(&ca_key)?, "lockstep-api", names)?;
    Ok(secret_with(found, secret, names, end, [(CA, ca_pem), (CERT, certificate), (KEY, key)]))
}

/// A certificate and its key, as PEM.
struct Leaf {
    certificate: String,
    key: String,
    end: Timestamp,
}

fn leaf(ca_key: &KeyPair, name: &str, names: &[String]) -> Result<Leaf, rcgen::Error> {
    let issuer = Issuer::new(ca_params(), ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let end = validity(&mut leaf, LEAF_DAYS);
    let certificate = leaf.signed_by(&key, &issuer)?.pem();
    Ok(Leaf { certificate, key: key.serialize_pem(), end })
}

/// The Secret with these data, in the place of the one that was found.
fn secret_with<const N: usize>(
    found: Option<&Secret>,
    secret: &str,
    names: &[String],
    end: Timestamp,
    data: [(&str, String); N],
) -> Secret {
    let mut metadata = found.map(|s| s.metadata.clone()).unwrap_or_default();
    metadata.name = Some(secret.to_owned());
    metadata.managed_fields = None;
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    annotations.insert(NOT_AFTER.to_owned(), end.to_string());
    annotations.insert(NAMES.to_owned(), names.join(","));
    Secret {
        metadata,
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
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
