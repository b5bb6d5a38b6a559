//! What each route does: turn HTTP into a request to the agent, and its answer into JSON.
//!
//! A handler holds no state and decides nothing; it must not block.

use axum::Json;
use axum::extract::{Path, State};

use super::change::{BackendPatch, ServicePatch};
use super::extract::{Answer, Body, Params, Raw, Write, WriteParams};
use super::types::{
    AdminRequest, ApplyResult, AttachRequest, BackendList, BackendView, ConfigView, DetachRequest, ErrorBody,
    HealthList, InterfaceStatus, RouteQuery, RouteView, SaveResult, ServiceList, ServiceView, StatsView,
    Status, Versioned,
};
use super::{ApiError, ApiHandle, Change, Request};
use crate::config::{self, Backend, Service};

type Agent = State<ApiHandle>;

#[utoipa::path(get, path = "/v1/status", tag = "agent", responses((status = 200, body = Status)))]
/// The agent and the data plane at a glance
pub(super) async fn status(State(agent): Agent) -> Answer<Status> {
    agent.ask(Request::Status).await.map(Json)
}

#[utoipa::path(get, path = "/v1/services", tag = "services", responses((status = 200, body = ServiceList)))]
/// All services
pub(super) async fn services(State(agent): Agent) -> Answer<ServiceList> {
    agent.ask(Request::Services).await.map(|services| Json(services.into()))
}

#[utoipa::path(get, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path)),
    responses((status = 200, body = Versioned<ServiceView>), (status = 404, body = ErrorBody)))]
/// One service
pub(super) async fn service(State(agent): Agent, Path(name): Path<String>) -> Answer<Versioned<ServiceView>> {
    let services = agent.ask(Request::Services).await?;
    let found = services.into_iter().find(|service| service.name == name);
    found.map(|service| Json(service.into())).ok_or_else(|| ApiError::no_service(&name))
}

#[utoipa::path(post, path = "/v1/services", tag = "services", params(WriteParams), request_body = Service,
    responses((status = 200, body = ApplyResult), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
/// Add a service
pub(super) async fn add_service(
    State(agent): Agent,
    Write(params): Write,
    Body(service): Body<Service>,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::AddService(Box::new(service))).await
}

#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path), WriteParams),
    request_body = ServicePatch,
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
/// Change fields of a service
pub(super) async fn set_service(
    State(agent): Agent,
    Path(service): Path<String>,
    Write(params): Write,
    Body(patch): Body<ServicePatch>,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::SetService { service, patch: Box::new(patch) }).await
}

#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path), WriteParams),
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
/// Delete a service and its backends
pub(super) async fn delete_service(
    State(agent): Agent,
    Path(service): Path<String>,
    Write(params): Write,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::DeleteService { service }).await
}

#[utoipa::path(get, path = "/v1/backends", tag = "backends", responses((status = 200, body = BackendList)))]
/// Backends of all services
pub(super) async fn backends(State(agent): Agent) -> Answer<BackendList> {
    let backends = agent.ask(|reply| Request::Backends { service: None, reply }).await?;
    Ok(Json(backends.into()))
}

#[utoipa::path(get, path = "/v1/services/{service}/backends", tag = "backends", params(("service" = String, Path)),
    responses((status = 200, body = BackendList), (status = 404, body = ErrorBody)))]
/// Backends of one service
pub(super) async fn service_backends(
    State(agent): Agent,
    Path(service): Path<String>,
) -> Answer<BackendList> {
    let backends = agent.ask(|reply| Request::Backends { service: Some(service), reply }).await?;
    Ok(Json(backends.into()))
}

#[utoipa::path(get, path = "/v1/services/{service}/backends/{backend}", tag = "backends",
    params(("service" = String, Path), ("backend" = String, Path)),
    responses((status = 200, body = Versioned<BackendView>), (status = 404, body = ErrorBody)))]
/// One backend
pub(super) async fn backend(
    State(agent): Agent,
    Path((service, name)): Path<(String, String)>,
) -> Answer<Versioned<BackendView>> {
    let asked = Some(service.clone());
    let backends = agent.ask(|reply| Request::Backends { service: asked, reply }).await?;
    let found = backends.into_iter().find(|backend| backend.name == name);
    found.map(|backend| Json(backend.into())).ok_or_else(|| ApiError::no_backend(&service, &name))
}

#[utoipa::path(post, path = "/v1/services/{service}/backends", tag = "backends",
    params(("service" = String, Path), WriteParams), request_body = Backend,
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
/// Add a backend
pub(super) async fn add_backend(
    State(agent): Agent,
    Path(service): Path<String>,
    Write(params): Write,
    Body(backend): Body<Backend>,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::AddBackend { service, backend }).await
}

#[utoipa::path(patch, path = "/v1/services/{service}/backends/{backend}", tag = "backends",
    params(("service" = String, Path), ("backend" = String, Path), WriteParams), request_body = BackendPatch,
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
/// Change fields of a backend
pub(super) async fn set_backend(
    State(agent): Agent,
    Path((service, backend)): Path<(String, String)>,
    Write(params): Write,
    Body(patch): Body<BackendPatch>,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::SetBackend { service, backend, patch }).await
}

#[utoipa::path(put, path = "/v1/services/{service}/backends/{backend}/admin", tag = "backends",
    params(("service" = String, Path), ("backend" = String, Path), WriteParams), request_body = AdminRequest,
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
/// Make a backend ready, drain it, or take it out for maintenance
pub(super) async fn set_admin(
    State(agent): Agent,
    Path((service, backend)): Path<(String, String)>,
    Write(params): Write,
    Body(request): Body<AdminRequest>,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::SetAdmin { service, backend, admin: request.admin }).await
}

#[utoipa::path(delete, path = "/v1/services/{service}/backends/{backend}", tag = "backends",
    params(("service" = String, Path), ("backend" = String, Path), WriteParams),
    responses((status = 200, body = ApplyResult), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
/// Delete a backend
pub(super) async fn delete_backend(
    State(agent): Agent,
    Path((service, backend)): Path<(String, String)>,
    Write(params): Write,
) -> Answer<ApplyResult> {
    mutate(&agent, params, Change::DeleteBackend { service, backend }).await
}

#[utoipa::path(get, path = "/v1/config", tag = "config", responses((status = 200, body = ConfigView)))]
/// The running configuration
pub(super) async fn config(State(agent): Agent) -> Answer<ConfigView> {
    agent.ask(Request::Config).await.map(Json)
}

#[utoipa::path(put, path = "/v1/config", tag = "config", params(WriteParams),
    request_body(content = String, content_type = "application/toml"),
    responses((status = 200, body = ApplyResult), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
/// Replace the running configuration by a TOML text, whole or not at all
pub(super) async fn apply_config(
    State(agent): Agent,
    Write(params): Write,
    Raw(text): Raw,
) -> Answer<ApplyResult> {
    // A text of many megabytes takes long enough to hold up the other requests.
    let parsed = tokio::task::spawn_blocking(move || config::parse_bytes(&text, "request")).await;
    let parsed = parsed.map_err(|error| {
        ApiError::internal(format!("reading the configuration failed: {error}"), "report this defect")
    })??;
    let WriteParams { if_generation, dry_run } = params;
    let request = |reply| Request::Apply { config: Box::new(parsed), if_generation, dry_run, reply };
    agent.ask(request).await.map(Json)
}

#[utoipa::path(post, path = "/v1/config/save", tag = "config", params(WriteParams),
    responses((status = 200, body = SaveResult), (status = 409, body = ErrorBody), (status = 500, body = ErrorBody)))]
/// Write the running configuration to its file
pub(super) async fn save_config(State(agent): Agent, Write(params): Write) -> Answer<SaveResult> {
    if params.dry_run {
        let help = "see what would be written with GET /v1/config";
        return Err(ApiError::new(super::ErrorKind::Invalid, "saving has no dry run", help));
    }
    agent.ask(|reply| Request::Save { if_generation: params.if_generation, reply }).await.map(Json)
}

#[utoipa::path(get, path = "/v1/health", tag = "health", responses((status = 200, body = HealthList)))]
/// The checks of all backends
pub(super) async fn health(State(agent): Agent) -> Answer<HealthList> {
    agent.ask(Request::Health).await.map(|health| Json(health.into()))
}

#[utoipa::path(get, path = "/v1/stats", tag = "data plane", responses((status = 200, body = StatsView)))]
/// All counters
pub(super) async fn stats(State(agent): Agent) -> Answer<StatsView> {
    agent.ask(Request::Stats).await.map(Json)
}

#[utoipa::path(get, path = "/v1/route", tag = "data plane", params(RouteQuery),
    responses((status = 200, body = RouteView)))]
/// Where a flow would go; nothing is sent
pub(super) async fn route(State(agent): Agent, Params(query): Params<RouteQuery>) -> Answer<RouteView> {
    agent.ask(|reply| Request::Route { query, reply }).await.map(Json)
}

#[utoipa::path(post, path = "/v1/dataplane/attach", tag = "data plane", request_body = AttachRequest,
    responses((status = 200, body = Versioned<InterfaceStatus>), (status = 404, body = ErrorBody),
        (status = 500, body = ErrorBody)))]
/// Attach the data plane to an interface
pub(super) async fn attach(
    State(agent): Agent,
    Body(request): Body<AttachRequest>,
) -> Answer<Versioned<InterfaceStatus>> {
    let AttachRequest { interface, mode } = request;
    let attached = agent.ask(|reply| Request::Attach { interface, mode, reply }).await?;
    Ok(Json(attached.into()))
}

#[utoipa::path(post, path = "/v1/dataplane/detach", tag = "data plane", request_body = DetachRequest,
    responses((status = 200, body = Versioned<InterfaceStatus>), (status = 404, body = ErrorBody),
        (status = 500, body = ErrorBody)))]
/// Detach the data plane from an interface
pub(super) async fn detach(
    State(agent): Agent,
    Body(request): Body<DetachRequest>,
) -> Answer<Versioned<InterfaceStatus>> {
    let interface = request.interface;
    let detached = agent.ask(|reply| Request::Detach { interface, reply }).await?;
    Ok(Json(detached.into()))
}

async fn mutate(agent: &ApiHandle, params: WriteParams, change: Change) -> Answer<ApplyResult> {
    let WriteParams { if_generation, dry_run } = params;
    agent.ask(|reply| Request::Mutate { change, if_generation, dry_run, reply }).await.map(Json)
}
