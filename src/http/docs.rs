//! The page about the API, for people: made from the OpenAPI document, without scripts and without anything from elsewhere.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::Value;

use super::openapi;
use super::operations::IN_NAMESPACE;

static PAGE: LazyLock<String> = LazyLock::new(|| page_of(&openapi::made()));

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f4;border-radius:4px;padding:.1rem .3rem}\
pre{padding:.8rem;overflow:auto}details{border:1px solid #ddd;border-radius:6px;margin:.5rem 0;padding:.5rem .8rem}\
summary{cursor:pointer}b.m{display:inline-block;min-width:3.5rem;color:#06c}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;border-top:1px solid #eee;padding:.3rem .6rem .3rem 0}";

/// `GET /docs`
pub async fn page() -> Response {
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, policy)], PAGE.as_str()).into_response()
}

fn page_of(document: &Value) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Lockstep API</title><style>{STYLE}</style><h1>Lockstep API</h1><p>{}</p><p>The same for programs: <a href=openapi.json>openapi.json</a> (OpenAPI 3.1). Every path is also there below <code>{}</code>.</p><pre>curl -H \"Authorization: Bearer $(kubectl create token NAME)\" \\\n  -d '{{\"input\": \"A shop for used bikes\", \"story_id\": \"shop\"}}' $ADDRESS/run</pre>",
        text(&document["info"]["description"]),
        IN_NAMESPACE
    );
    for (path, methods) in members(&document["paths"]).filter(|(path, _)| !path.starts_with(IN_NAMESPACE)) {
        for (method, operation) in members(methods) {
            operation_of(&mut page, path, method, operation);
        }
    }
    page.push_str("<h2>Types</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let _ = write!(
            page,
            "<details id='{0}'><summary><code>{0}</code></summary><p>{1}</p>",
            escaped(name),
            text(&schema["description"])
        );
        fields(&mut page, schema);
        page.push_str("</details>");
    }
    page
}

fn operation_of(page: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        page,
        "<details><summary><b class=m>{}</b> <code>{}</code> {}</summary><p>{}</p>",
        method.to_ascii_uppercase(),
        escaped(path),
        text(&operation["summary"]),
        text(&operation["description"])
    );
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    rows(
        page,
        "Parameters",
        parameters.map(|one| (text(&one["name"]), format!("{}: {}", text(&one["in"]), text(&one["description"])))),
    );
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if body.is_object() {
        page.push_str("<h4>Body</h4>");
        fields(page, body);
    }
    rows(page, "Answers", members(&operation["responses"]).map(|(code, said)| (escaped(code), said_of(said))));
    page.push_str("</details>");
}

fn said_of(said: &Value) -> String {
    let kinds: Vec<String> = members(&said["content"])
        .map(|(kind, content)| {
            let name = content["schema"]["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
            let link = name.map_or_else(String::new, |name| format!(" <a href='#{0}'>{0}</a>", escaped(name)));
            format!("<code>{}</code>{link}", escaped(kind))
        })
        .collect();
    format!("{} {}", text(&said["description"]), kinds.join(", "))
}

fn fields(page: &mut String, schema: &Value) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = members(&schema["properties"]).map(|(name, field)| {
        let mark = if required.contains(&name) { " <b>required</b>" } else { "" };
        (escaped(name), format!("{}{mark}", text(&field["description"])))
    });
    rows(page, "", properties);
}

fn rows(page: &mut String, head: &str, rows: impl Iterator<Item = (String, String)>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    if !head.is_empty() {
        let _ = write!(page, "<h4>{head}</h4>");
    }
    page.push_str("<table>");
    for (name, about) in rows {
        let _ = write!(page, "<tr><td><code>{name}</code><td>{about}");
    }
    page.push_str("</table>");
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member))
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_call_and_loads_nothing() {
        let page = page_of(&openapi::made());
        for operation in super::super::operations::OPERATIONS {
            assert!(page.contains(&escaped(operation.summary)), "{}", operation.id);
        }
        for foreign in ["<script", "http://", "https://", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(escaped("<a b='c'>&"), "&lt;a b=&#39;c&#39;&gt;&amp;");
    }
}
