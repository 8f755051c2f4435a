//! Lists, page by page: all pages of a list show the same version, also when somebody writes between them.

#![expect(clippy::disallowed_macros, reason = "the metadata of a list")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::kind::Kind;
use super::object::{Key, Object};
use super::registry::Registry;
use super::request::{Page, token};
use super::selector::Selection;
use super::status::{Result, expired, too_new};
use super::store::ChangeType;
use super::table::{Form, table};

/// The body of the answer.
pub fn list(registry: &Registry, kind: Kind, (selection, page): (&Selection, &Page), form: Form) -> Result<Vec<u8>> {
    let current = registry.store().version();
    let stated = page.after.as_ref().map(|(version, ..)| *version).or(page.exactly);
    if let Some(asked) = stated.or(page.at_least).filter(|asked| *asked > current) {
        return Err(too_new(asked, current));
    }
    let version = stated.unwrap_or(current);
    let all = as_of(registry, kind, version)?;
    let mut left = all.into_iter().filter(|object| selection.takes(object) && is_behind(&object.key, page));
    let objects: Vec<Arc<Object>> = left.by_ref().take(page.limit.unwrap_or(usize::MAX)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    let remaining = left.count();
    if let (Some(last), true) = (objects.last(), remaining > 0) {
        metadata["continue"] = json!(token(version, &last.key));
        metadata["remainingItemCount"] = json!(remaining);
    }
    if form == Form::Table {
        return Ok(table(kind, &objects, &metadata).to_string().into_bytes());
    }
    let (api, name) = (kind.api_version(), kind.name());
    let mut body = format!("{{\"kind\":\"{name}List\",\"apiVersion\":\"{api}\",\"metadata\":{metadata},\"items\":[");
    for (at, object) in objects.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        body.push_str(&String::from_utf8_lossy(&object.json()));
    }
    body.push_str("]}");
    Ok(body.into_bytes())
}

fn is_behind(key: &Key, page: &Page) -> bool {
    let Some((_, namespace, name)) = &page.after else { return true };
    (&key.namespace, &key.name) > (namespace, name)
}

/// What was there at a version: what happened since is undone.
fn as_of(registry: &Registry, kind: Kind, version: u64) -> Result<Vec<Arc<Object>>> {
    let now = registry.store().list(kind);
    if version == registry.store().version() {
        return Ok(now);
    }
    let since = registry.store().changes(version).ok_or_else(|| {
        expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.")
    })?;
    let mut objects: BTreeMap<Key, Arc<Object>> = now.into_iter().map(|o| (o.key.clone(), o)).collect();
    for change in since.into_iter().rev().filter(|change| change.object.key.kind == kind) {
        match (change.change_type, change.before) {
            (ChangeType::Added, _) | (_, None) => drop(objects.remove(&change.object.key)),
            (_, Some(before)) => drop(objects.insert(before.key.clone(), before)),
        }
    }
    Ok(objects.into_values().collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::apiserver::MemoryStore;
    use crate::apiserver::access::Open;
    use crate::apiserver::registry::Writer;

    #[test]
    fn a_list_of_the_future_is_refused() {
        let (store, clock) = (Box::new(MemoryStore::default()), Box::new(|| Timestamp::UNIX_EPOCH));
        let mut registry = Registry::new(store, Box::new(Open), clock, "list".to_owned());
        let key = Key::new(Kind::ConfigMap, "team", "a");
        let by = Writer { user: "admin", is_dry_run: false };
        registry.create(&key, json!({"metadata": {"name": "a"}}), by).expect("it is made");
        let stated = |version: u64| {
            [
                Page { at_least: Some(version), ..Page::default() },
                Page { exactly: Some(version), ..Page::default() },
                Page { after: Some((version, String::new(), String::new())), ..Page::default() },
            ]
        };
        for page in stated(1) {
            let found = list(&registry, Kind::ConfigMap, (&Selection::default(), &page), Form::Objects);
            let found = String::from_utf8(found.expect("a list")).expect("a text");
            assert!(found.contains("\"resourceVersion\":\"1\"") && found.contains("\"name\":\"a\""), "{page:?}");
        }
        for page in stated(2) {
            let found = list(&registry, Kind::ConfigMap, (&Selection::default(), &page), Form::Objects);
            let refusal = found.expect_err("refused");
            assert_eq!((refusal.code, refusal.reason.as_str()), (504, "Timeout"), "{page:?}");
            assert_eq!(refusal.message, "Timeout: Too large resource version: 2, current: 1", "{page:?}");
            let details = refusal.details.expect("details");
            assert_eq!(
                (details.retry_after_seconds, details.causes[0].reason.as_str()),
                (1, "ResourceVersionTooLarge")
            );
        }
    }
}
