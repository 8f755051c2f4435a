//! The tools as an MCP server: over HTTP at `LOCKSTEP_URL/mcp`, and over stdin and stdout as `lockstep mcp`. The protocol is the
//! crate's; here stands how a call reaches the shim.

#![expect(clippy::disallowed_methods, reason = "a client that waits is told so now and then")]

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::Value;

use super::files::OUTPUT_READ_BYTES;
use super::tools::{self, Effect};
use super::{Stop, calls, exit};

/// Between two words to a client whose call takes long, so that it does not give up.
const STILL_THERE: Duration = Duration::from_secs(10);
const INSTRUCTIONS: &str = "You work on one attempt of one step of a workflow. Tell your progress, check your output with \
    `result` before you end, remember what a later attempt needs, and ask people where you cannot know.";

/// How a call of the agent is made: its path below `LOCKSTEP_URL`, and its body, null for none.
pub trait Reach: Send + Sync + 'static {
    fn call(&self, call: &str, body: &Value) -> Result<(u16, Value), String>;
}

/// The tools, for one client.
#[derive(Clone)]
pub struct Tools(Arc<dyn Reach>);

/// The tools over HTTP. Without sessions: each request stands for itself, and nothing is kept between two.
pub fn service(reach: Arc<dyn Reach>) -> StreamableHttpService<Tools, NeverSessionManager> {
    let body = usize::try_from(OUTPUT_READ_BYTES).unwrap_or(usize::MAX).saturating_mul(2);
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        // A page in a browser has no business here.
        .enforce_origin_validation()
        .with_max_request_body_bytes(body);
    StreamableHttpService::new(move || Ok(Tools(Arc::clone(&reach))), Arc::default(), config)
}

/// The verb: until stdin ends.
pub fn serve_stdio() -> Result<u8, Stop> {
    let fault = |error: &dyn std::fmt::Display| Stop::new(exit::INTERNAL, format!("mcp: {error}"));
    calls::url()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| fault(&error))?;
    let served = runtime.block_on(async {
        let server = rmcp::serve_server(Tools(Arc::new(Remote)), rmcp::transport::stdio());
        let server = server.await.map_err(|error| fault(&error))?;
        server.waiting().await.map_err(|error| fault(&error))
    });
    runtime.shutdown_background();
    served.map(|_| 0)
}

/// The shim, from another process of the container.
struct Remote;

impl Reach for Remote {
    fn call(&self, call: &str, body: &Value) -> Result<(u16, Value), String> {
        let (status, answer) = match body["waitSeconds"].as_i64() {
            None => calls::post(call, body),
            seconds => calls::post_waiting(call, body, seconds),
        }
        .map_err(|stop| stop.message)?;
        Ok((status, serde_json::from_str(&answer).unwrap_or_default()))
    }
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("lockstep", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all().iter().map(listed).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let tool = tools::all().into_iter().find(|tool| tool.name == request.name);
        let Some(tool) = tool else {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", request.name), None));
        };
        let body = tools::request(&tool, request.arguments.unwrap_or_default());
        let (reach, call) = (Arc::clone(&self.0), tool.call);
        let mut called = tokio::task::spawn_blocking(move || reach.call(call, &body));
        let mut waited = 0.0;
        let answered = loop {
            tokio::select! {
                answered = &mut called => break answered,
                () = tokio::time::sleep(STILL_THERE) => {
                    waited += STILL_THERE.as_secs_f64();
                    still_there(&context, waited).await;
                }
            }
        };
        let told = match answered {
            Ok(Ok((status, answer))) => match tools::reply(&tool, status, answer) {
                (answer, false) => CallToolResult::structured(answer),
                (answer, true) => CallToolResult::structured_error(answer),
            },
            Ok(Err(error)) => CallToolResult::error(vec![ContentBlock::text(error)]),
            Err(error) => return Err(ErrorData::internal_error(error.to_string(), None)),
        };
        Ok(told.into())
    }
}

/// For a client that wants to hear of it.
async fn still_there(context: &RequestContext<RoleServer>, waited: f64) {
    if let Some(token) = context.meta.get_progress_token() {
        let word = ProgressNotificationParam::new(token, waited).with_message("waiting");
        // A client that is gone hears nothing.
        let _ = context.peer.notify_progress(word).await;
    }
}

fn listed(tool: &tools::Tool) -> Tool {
    let schema = tool.schema.as_object().cloned().unwrap_or_default();
    let hints = ToolAnnotations::from_raw(
        None,
        Some(tool.effect == Effect::Reads),
        Some(tool.effect == Effect::Ends),
        Some(matches!(tool.effect, Effect::Reads | Effect::Sets)),
        Some(false),
    );
    Tool::new(tool.name, tool.description, schema).with_annotations(hints)
}
