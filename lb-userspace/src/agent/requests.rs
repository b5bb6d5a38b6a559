//! Requests that change more than the services: saving, attaching, detaching.

use super::core::Agent;
use crate::{
    api::{
        ApiError, ErrorKind,
        types::{InterfaceStatus, SaveResult, SchemaVersion},
    },
    config::XdpMode,
};

impl Agent {
    /// Writes the running configuration to its file.
    pub(super) fn save_if(&mut self, if_generation: Option<u64>) -> Result<SaveResult, ApiError> {
        if let Some(demanded) = if_generation.filter(|&demanded| demanded != self.generation) {
            return Err(ApiError::wrong_generation(demanded, self.generation));
        }
        self.save().map_err(|error| {
            ApiError::kernel(
                format!("{error:#}"),
                "the running configuration goes on; free the path and save again",
            )
        })?;
        Ok(SaveResult {
            schema_version: SchemaVersion,
            path: self.options.config.display().to_string(),
            generation: self.generation,
        })
    }

    /// Adds an interface to the running configuration.
    pub(super) async fn attach(
        &mut self,
        interface: &str,
        mode: Option<XdpMode>,
    ) -> Result<InterfaceStatus, ApiError> {
        let configured = self.running.node.xdp_mode;
        if let Some(mode) = mode.filter(|&mode| mode != configured) {
            return Err(ApiError::new(
                ErrorKind::Invalid,
                format!("the configuration attaches in {configured} mode, not {mode}"),
                "one mode holds for all interfaces of a node: set node.xdp_mode in the configuration",
            ));
        }
        let mut config = self.running.clone();
        if !config.node.interfaces.iter().any(|name| name == interface) {
            config.node.interfaces.push(interface.to_owned());
        }
        self.change(config, None, false, false).await?;
        let status = self.interfaces.status().into_iter().find(|status| status.name == interface);
        status
            .ok_or_else(|| ApiError::internal(format!("{interface} is not attached"), "see the agent's log"))
    }

    /// Takes an interface out of the running configuration.
    pub(super) async fn detach(&mut self, interface: &str) -> Result<InterfaceStatus, ApiError> {
        let Some(status) = self.interfaces.status().into_iter().find(|status| status.name == interface)
        else {
            let message = format!("{interface} is not attached");
            return Err(ApiError::new(
                ErrorKind::NotFound,
                message,
                "`wattline dataplane status` lists what is",
            ));
        };
        let mut config = self.running.clone();
        config.node.interfaces.retain(|name| name != interface);
        self.change(config, None, false, false).await?;
        Ok(status)
    }
}
