//! From HTTP to values and back: bodies, queries, the demanded generation, and errors as JSON.
//!
//! Nothing here knows a route. Every refusal is an [`ErrorBody`](super::types::ErrorBody), whatever refused it.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ApiError, ErrorKind};

/// Header that demands a generation; `?if_generation=` does the same.
pub(super) const IF_GENERATION: &str = "if-generation";

impl ErrorKind {
    /// The HTTP status that tells it.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Kernel | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self.body())).into_response()
    }
}

/// What a handler gives back.
pub(super) type Answer<T> = Result<Json<T>, ApiError>;

/// An error made by the HTTP layer itself, in the shape of all others and with the layer's status.
fn refused(rejection: impl IntoResponse, message: String, help: &str) -> Response {
    let status = rejection.into_response().status();
    (status, Json(ApiError::new(ErrorKind::Invalid, message, help).body())).into_response()
}

/// A JSON body; the content type does not matter.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Raw::from_request(request, state).await?.0;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let help = "see GET /v1/openapi.json for what the body may hold";
            ApiError::new(ErrorKind::Invalid, format!("the body does not fit: {error}"), help).into_response()
        })
    }
}

/// A body as it came.
pub(super) struct Raw(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            let message = format!("the body cannot be read: {rejection}");
            refused(rejection, message, "send a smaller body")
        })
    }
}

/// Query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let message = rejection.to_string();
                Err(refused(rejection, message, "see GET /v1/openapi.json for the parameters"))
            }
        }
    }
}

/// Conditions of a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct WriteParams {
    /// Demanded generation of the running configuration; another one is a conflict. The header `If-Generation` does
    /// the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// Only tell what would happen.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Conditions of a write, from query and header.
pub(super) struct Write(pub(super) WriteParams);

impl<S: Send + Sync> FromRequestParts<S> for Write {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let Params(mut params) = Params::<WriteParams>::from_request_parts(parts, state).await?;
        if let Some(header) = parts.headers.get(IF_GENERATION) {
            let number = header.to_str().ok().and_then(|text| text.trim().parse().ok());
            let Some(number) = number else {
                let help = "give the number that `wattline status` shows as generation";
                let error = ApiError::new(ErrorKind::Invalid, "If-Generation is not a number", help);
                return Err(error.into_response());
            };
            if params.if_generation.is_some_and(|other| other != number) {
                let help = "give the generation once";
                let message = "header and query demand different generations";
                return Err(ApiError::new(ErrorKind::Invalid, message, help).into_response());
            }
            params.if_generation = Some(number);
        }
        Ok(Self(params))
    }
}
