//! One edit of the running configuration, as a value.
//!
//! Pure: an edit turns one configuration into another, and whether the result is valid is asked afterwards.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{ApiError, ErrorKind};
use crate::config::{Admin, AllDown, Backend, Config, HealthSettings, Mode, Port, Protocol, Service};

/// One edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new service, with or without backends.
    AddService(Box<Service>),
    /// Other values for some fields of a service.
    SetService {
        /// Name of the service.
        service: String,
        /// The new values.
        patch: Box<ServicePatch>,
    },
    /// A service goes, with its backends.
    DeleteService {
        /// Name of the service.
        service: String,
    },
    /// A new backend.
    AddBackend {
        /// Name of the service.
        service: String,
        /// The backend.
        backend: Backend,
    },
    /// Other values for some fields of a backend.
    SetBackend {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// The new values.
        patch: BackendPatch,
    },
    /// A backend goes.
    DeleteBackend {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
    },
    /// Another administrative state.
    SetAdmin {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// The state.
        admin: Admin,
    },
}

/// New values of a service's fields; what is absent stays. `null` takes an optional field away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServicePatch {
    /// The address clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The port clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub port: Option<Port>,
    /// The protocol clients speak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// How packets get to the backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Slots of the ring; `null`: chosen from the number of backends.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub ring_slots: Option<Option<u32>>,
    /// What happens when no backend is usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_down: Option<AllDown>,
    /// All health settings of the service anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSettings>,
}

/// New values of a backend's fields; what is absent stays. `null` takes an optional field away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackendPatch {
    /// Where packets are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Share of new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Site label; `null` removes it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub site: Option<Option<String>>,
}

/// Tells a field that is `null` from one that is absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Change {
    /// Makes the edit. The result still has to be validated; on an error `config` is as before.
    pub fn apply(&self, config: &mut Config) -> Result<(), ApiError> {
        match self {
            Self::AddService(service) => {
                if config.service(&service.name).is_some() {
                    let message = format!("there is a service {:?} already", service.name);
                    return Err(ApiError::new(
                        ErrorKind::Conflict,
                        message,
                        "change it with `wattline service set`",
                    ));
                }
                config.services.push(service.as_ref().clone());
            }
            Self::SetService { service, patch } => patch.apply(service_mut(config, service)?)?,
            Self::DeleteService { service } => {
                let name = &service_mut(config, service)?.name.clone();
                config.services.retain(|service| service.name != *name);
            }
            Self::AddBackend { service, backend } => {
                let service = service_mut(config, service)?;
                if service.backend(&backend.name).is_some() {
                    let message =
                        format!("service {:?} has a backend {:?} already", service.name, backend.name);
                    return Err(ApiError::new(
                        ErrorKind::Conflict,
                        message,
                        "change it with `wattline backend set`",
                    ));
                }
                service.backends.push(backend.clone());
            }
            Self::SetBackend { service, backend, patch } => {
                patch.apply(backend_mut(config, service, backend)?)?;
            }
            Self::DeleteBackend { service, backend } => {
                backend_mut(config, service, backend)?;
                service_mut(config, service)?.backends.retain(|candidate| candidate.name != *backend);
            }
            Self::SetAdmin { service, backend, admin } => {
                backend_mut(config, service, backend)?.admin = *admin;
            }
        }
        Ok(())
    }
}

fn service_mut<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut Service, ApiError> {
    config.service_mut(name).ok_or_else(|| ApiError::no_service(name))
}

fn backend_mut<'a>(config: &'a mut Config, service: &str, name: &str) -> Result<&'a mut Backend, ApiError> {
    service_mut(config, service)?.backend_mut(name).ok_or_else(|| ApiError::no_backend(service, name))
}

fn nothing_to_set() -> ApiError {
    ApiError::new(ErrorKind::Invalid, "no field to set was given", "give at least one, see --help")
}

impl ServicePatch {
    fn apply(&self, service: &mut Service) -> Result<(), ApiError> {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self { address, port, protocol, mode, ring_slots, all_down, health } = self;
        if *self == Self::default() {
            return Err(nothing_to_set());
        }
        set(&mut service.address, address.as_ref());
        set(&mut service.port, port.as_ref());
        set(&mut service.protocol, protocol.as_ref());
        set(&mut service.mode, mode.as_ref());
        set(&mut service.ring_slots, ring_slots.as_ref());
        set(&mut service.all_down, all_down.as_ref());
        set(&mut service.health, health.as_ref());
        Ok(())
    }
}

impl BackendPatch {
    fn apply(&self, backend: &mut Backend) -> Result<(), ApiError> {
        let Self { address, weight, site } = self;
        if *self == Self::default() {
            return Err(nothing_to_set());
        }
        set(&mut backend.address, address.as_ref());
        set(&mut backend.weight, weight.as_ref());
        set(&mut backend.site, site.as_ref());
        Ok(())
    }
}

fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        *field = value.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut web = Service::new("web", "192.0.2.10".parse().unwrap(), Port::Number(80), Protocol::Tcp);
        web.backends.push(Backend::new("web-1", "10.0.0.1".parse().unwrap()));
        web.backends.push(Backend::new("web-2", "10.0.0.2".parse().unwrap()));
        Config { services: vec![web], ..Config::default() }
    }

    fn applied(change: &Change) -> Config {
        let mut config = config();
        change.apply(&mut config).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.validate(), Ok(()));
        config
    }

    fn refused(change: &Change) -> ApiError {
        let mut changed = config();
        let error = change.apply(&mut changed).expect_err("refused");
        assert_eq!(changed, config(), "a refused edit changes nothing");
        assert!(!error.help.is_empty());
        error
    }

    #[test]
    fn services_come_change_and_go() {
        let new = Service::new("dns", "192.0.2.53".parse().unwrap(), Port::Number(53), Protocol::Udp);
        let config = applied(&Change::AddService(Box::new(new.clone())));
        assert_eq!(config.services[1], new);
        let patch = ServicePatch {
            port: Some(Port::Number(81)),
            mode: Some(Mode::Gue),
            ring_slots: Some(Some(1009)),
            all_down: Some(AllDown::Drop),
            ..ServicePatch::default()
        };
        let config = applied(&Change::SetService { service: "web".into(), patch: Box::new(patch) });
        let web = &config.services[0];
        assert_eq!(
            (web.port, web.mode, web.ring_slots, web.all_down),
            (Port::Number(81), Mode::Gue, Some(1009), AllDown::Drop)
        );
        assert_eq!(web.backends.len(), 2, "what is not named stays");
        assert_eq!(applied(&Change::DeleteService { service: "web".into() }).services, []);
    }

    #[test]
    fn backends_come_change_and_go() {
        let new = Backend::new("web-3", "10.0.0.3".parse().unwrap());
        let config = applied(&Change::AddBackend { service: "web".into(), backend: new.clone() });
        assert_eq!(config.services[0].backends[2], new);
        let patch =
            BackendPatch { weight: Some(5), site: Some(Some("berlin".into())), ..BackendPatch::default() };
        let set = |patch| Change::SetBackend { service: "web".into(), backend: "web-2".into(), patch };
        let config = applied(&set(patch));
        let two = &config.services[0].backends[1];
        assert_eq!((two.weight, two.site.as_deref()), (5, Some("berlin")));
        assert_eq!(config.services[0].backends[0].weight, 100);
        let delete = Change::DeleteBackend { service: "web".into(), backend: "web-1".into() };
        assert_eq!(applied(&delete).services[0].backends[0].name, "web-2");
        let admin = Change::SetAdmin { service: "web".into(), backend: "web-1".into(), admin: Admin::Drain };
        assert_eq!(applied(&admin).services[0].backends[0].admin, Admin::Drain);
    }

    #[test]
    fn what_does_not_exist_or_exists_already_is_told() {
        let no = |error: ApiError| error.kind;
        let backend = Backend::new("web-1", "10.0.0.9".parse().unwrap());
        let cases = [
            (Change::DeleteService { service: "x".into() }, ErrorKind::NotFound),
            (Change::AddBackend { service: "x".into(), backend: backend.clone() }, ErrorKind::NotFound),
            (Change::AddBackend { service: "web".into(), backend }, ErrorKind::Conflict),
            (Change::AddService(Box::new(config().services.remove(0))), ErrorKind::Conflict),
            (Change::DeleteBackend { service: "web".into(), backend: "x".into() }, ErrorKind::NotFound),
            (
                Change::SetAdmin { service: "web".into(), backend: "x".into(), admin: Admin::Ready },
                ErrorKind::NotFound,
            ),
            (
                Change::SetBackend {
                    service: "web".into(),
                    backend: "web-1".into(),
                    patch: BackendPatch::default(),
                },
                ErrorKind::Invalid,
            ),
            (Change::SetService { service: "web".into(), patch: Box::default() }, ErrorKind::Invalid),
        ];
        for (change, kind) in cases {
            assert_eq!(no(refused(&change)), kind, "{change:?}");
        }
    }

    #[test]
    fn null_removes_and_absence_keeps() {
        let patch: BackendPatch = serde_json::from_str(r#"{"site": null}"#).unwrap();
        assert_eq!(patch, BackendPatch { site: Some(None), ..BackendPatch::default() });
        assert_eq!(serde_json::to_string(&patch).unwrap(), r#"{"site":null}"#);
        let patch: BackendPatch = serde_json::from_str(r#"{"weight": 3}"#).unwrap();
        assert_eq!(patch, BackendPatch { weight: Some(3), ..BackendPatch::default() });
        assert!(serde_json::from_str::<BackendPatch>(r#"{"wieght": 3}"#).is_err());
        assert!(serde_json::from_str::<BackendPatch>(r#"{"weight": 65536}"#).is_err());
    }
}
