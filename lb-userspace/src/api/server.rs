//! The API's socket and router.
//!
//! Whoever may open the socket may do everything, so its file mode is the whole access control: owner and group only.
//! The server never answers from its own knowledge and never touches a map.

use std::future::Future;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::DefaultBodyLimit;
use axum::extract::connect_info::Connected;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::serve::IncomingStream;
use axum::{Extension, Json, Router, extract};

use super::{ApiError, ApiHandle, ErrorKind, handlers, openapi};
use crate::config::MAX_BYTES;

/// Group that may use the socket besides its owner, if the system has it.
pub const GROUP: &str = "wattline";

/// Largest body of a request other than a whole configuration, in bytes.
const SMALL_BODY: usize = 64 * 1024;

/// Longest time for one request, its body included. It is above every time an [`ApiHandle`] should wait, so that the
/// more telling error comes first.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Makes the socket at `path`, replacing one that nobody listens on any more. Whoever calls holds the agent's lock.
///
/// Needs no runtime, so that it can be done before privileges are given up.
pub fn bind(path: &Path) -> Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is not a socket; move it away", path.display());
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!("another agent answers on {}; stop it first", path.display());
        }
        _ => {}
    }
    // Made under another name, so that nobody can connect before the mode is set.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let _ = std::fs::remove_file(temporary);
    let made = bind_at(temporary, path);
    if made.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    made.with_context(|| format!("cannot listen on {}", path.display()))
}

fn bind_at(temporary: &Path, path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(temporary).context("cannot make a socket")?;
    listener.set_nonblocking(true).context("cannot make it non-blocking")?;
    restrict(temporary)?;
    std::fs::rename(temporary, path).context("cannot put the socket in its place")?;
    Ok(listener)
}

/// Lets owner and group use the socket, and nobody else.
fn restrict(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).context("cannot set its mode")?;
    match nix::unistd::Group::from_name(GROUP) {
        Ok(Some(group)) => {
            if let Err(error) = nix::unistd::chown(path, None, Some(group.gid)) {
                log::warn!("the socket stays with the agent's own group: cannot give it to {GROUP}: {error}");
            }
        }
        Ok(None) => {
            log::debug!("there is no group {GROUP}: only the agent's own user and group may use the socket");
        }
        Err(error) => log::warn!("cannot look up group {GROUP}: {error}"),
    }
    Ok(())
}

/// Serves the API until `shutdown` completes; requests under way are finished.
pub async fn serve(
    listener: UnixListener,
    agent: ApiHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener).context("cannot listen on the socket")?;
    let service = router(agent).into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await.context("the API server failed")
}

/// All routes.
pub fn router(agent: ApiHandle) -> Router {
    let whole = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
    Router::new()
        .route(
            "/v1/config",
            put(handlers::apply_config).layer(DefaultBodyLimit::max(whole)).get(handlers::config),
        )
        .merge(small_routes().layer(DefaultBodyLimit::max(SMALL_BODY)))
        .fallback(|uri: Uri| async move {
            let message = format!("there is no {}", uri.path());
            ApiError::new(ErrorKind::NotFound, message, "GET /v1/openapi.json lists every route")
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let message = format!("{} does not take {method}", uri.path());
            let error = ApiError::new(ErrorKind::Invalid, message, "GET /v1/openapi.json lists every route");
            (StatusCode::METHOD_NOT_ALLOWED, Json(error.body()))
        })
        .layer(middleware::from_fn(guard))
        .with_state(agent)
}

fn small_routes() -> Router<ApiHandle> {
    Router::new()
        .route("/v1/openapi.json", get(description))
        .route("/v1/status", get(handlers::status))
        .route("/v1/services", get(handlers::services).post(handlers::add_service))
        .route(
            "/v1/services/{service}",
            get(handlers::service).patch(handlers::set_service).delete(handlers::delete_service),
        )
        .route("/v1/backends", get(handlers::backends))
        .route("/v1/services/{service}/backends", get(handlers::service_backends).post(handlers::add_backend))
        .route(
            "/v1/services/{service}/backends/{backend}",
            get(handlers::backend).patch(handlers::set_backend).delete(handlers::delete_backend),
        )
        .route("/v1/services/{service}/backends/{backend}/admin", put(handlers::set_admin))
        .route("/v1/config/save", post(handlers::save_config))
        .route("/v1/health", get(handlers::health))
        .route("/v1/stats", get(handlers::stats))
        .route("/v1/route", get(handlers::route))
        .route("/v1/dataplane/attach", post(handlers::attach))
        .route("/v1/dataplane/detach", post(handlers::detach))
}

async fn description() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi::json())
}

/// Who is at the other end of a connection, by the kernel's word.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, tokio::net::UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, tokio::net::UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self { uid: credentials.map(|peer| peer.uid()), pid: credentials.and_then(|peer| peer.pid()) }
    }
}

/// Logs writes with who made them, and ends requests that take too long.
async fn guard(
    peer: Option<Extension<extract::ConnectInfo<Peer>>>,
    request: extract::Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!("the request took longer than {} s", REQUEST_TIMEOUT.as_secs());
        ApiError::new(ErrorKind::Timeout, message, "send the body faster").into_response()
    });
    let level = if method == Method::GET { log::Level::Debug } else { log::Level::Info };
    let peer = peer.map(|Extension(extract::ConnectInfo(peer))| peer);
    let uid = peer.and_then(|peer| peer.uid).map_or_else(|| "?".to_owned(), |uid| uid.to_string());
    let pid = peer.and_then(|peer| peer.pid).map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    log::log!(level, "api: {method} {} by uid {uid} pid {pid}: {}", uri.path(), response.status().as_u16());
    response
}
