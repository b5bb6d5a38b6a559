//! Judging the agent and what is pinned, with the agent or without it.
//!
//! Pure: facts in, findings out.

use super::finding::{About, Finding};

/// What was seen of the agent and the pins.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    pub(super) agent: Agent,
    /// Release of this program.
    pub(super) version: &'static str,
    /// Directory of the balancer's pins.
    pub(super) pins: String,
    /// Whether the balancer's pins could be read; `Err` says why not.
    pub(super) pinned: Result<Pinned, String>,
    /// Directories of pins of other layouts.
    pub(super) other_layouts: Vec<String>,
}

/// The agent, as it answers.
#[derive(Debug, Clone)]
pub(super) enum Agent {
    /// It answers.
    Running(Running),
    /// Nobody listens on its socket.
    Absent,
    /// There is something, but no proper answer.
    Failed(String),
}

/// An agent that answers.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) services: u64,
    pub(super) config_path: String,
    /// Why the configuration file was refused.
    pub(super) config_error: Option<String>,
    /// Interfaces that it could not attach to, and why.
    pub(super) interface_errors: Vec<(String, String)>,
}

/// What is pinned.
#[derive(Debug, Clone, Default)]
pub(super) struct Pinned {
    /// There are pins of the balancer.
    pub(super) exists: bool,
    /// What is wrong with the maps.
    pub(super) layout: Vec<String>,
    /// Pinned links of the balancer, by interface.
    pub(super) links: Vec<(String, LinkState)>,
    /// The same for decapsulation.
    pub(super) decap: Vec<(String, LinkState)>,
}

/// What a pinned link is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Its program runs on the interface.
    Alive,
    /// There is no interface of that name in this network namespace.
    NotHere,
    /// Packets do not meet the program, for this reason.
    Dead(String),
}

const ABOUT: About<'_> = About("agent");

pub(super) fn judge(found: &Installation) -> Vec<Finding> {
    let mut findings = vec![agent(found)];
    if let Agent::Running(running) = &found.agent {
        findings.extend(running_agent(running));
    }
    match &found.pinned {
        Err(error) => findings.push(ABOUT.note(
            "pins",
            format!("the pins in {} could not be read: {error}", found.pins),
            "look as root: `sudo wattline doctor`",
        )),
        Ok(pinned) => {
            findings.extend(pins(found, pinned));
            findings.extend(links(pinned));
        }
    }
    findings.extend(found.other_layouts.iter().map(|directory| {
        ABOUT.warning(
            "other-layout",
            format!(
                "{directory} holds pins of another release's layout; an interface attached there is not ours"
            ),
            format!("if that release is gone: `rm -r {directory}` (this ends its forwarding)"),
        )
    }));
    findings
}

fn agent(found: &Installation) -> Finding {
    const ID: &str = "agent";
    let start = "`systemctl start wattline`, or `wattline agent --config /etc/wattline/wattline.toml`";
    let pinned = found.pinned.as_ref().ok().map(|pinned| pinned.exists);
    match &found.agent {
        Agent::Running(running) if running.version != found.version => ABOUT.note(
            ID,
            format!("{} runs (pid {}), this program is {}", running.version, running.pid, found.version),
            "restart it when it suits; forwarding goes on meanwhile: `systemctl restart wattline`",
        ),
        Agent::Running(Running { version, pid, services, .. }) => {
            ABOUT.ok(ID, format!("{version} runs (pid {pid}) with {services} services"))
        }
        Agent::Absent if pinned == Some(true) => ABOUT.warning(
            ID,
            "does not run, but what it pinned forwards on: nobody follows health, routes and neighbours",
            start,
        ),
        Agent::Absent => {
            let nothing = if pinned.is_some() { ", and nothing is pinned" } else { "" };
            ABOUT.note(ID, format!("does not run here{nothing}; a backend needs none"), start)
        }
        Agent::Failed(error) => {
            ABOUT.problem(ID, format!("does not answer properly: {error}"), "`journalctl -u wattline -n 50`")
        }
    }
}

fn running_agent(running: &Running) -> Vec<Finding> {
    let path = &running.config_path;
    let mut findings = vec![match &running.config_error {
        None => ABOUT.ok("config", format!("{path} is in force")),
        Some(error) => ABOUT.problem(
            "config",
            format!("{path} is refused, the last good one runs on: {}", first_line(error)),
            format!("see every error: `wattline config validate -f {path}`"),
        ),
    }];
    findings.extend(running.interface_errors.iter().map(|(interface, error)| {
        About(interface).problem(
            "attachment",
            format!("the agent cannot attach: {error}"),
            format!("the other findings about {interface} name the cause; then `wattline dataplane attach {interface}`"),
        )
    }));
    findings
}

fn pins(found: &Installation, pinned: &Pinned) -> Vec<Finding> {
    const ID: &str = "pins";
    if !pinned.exists {
        // Said by the finding about the agent.
        return Vec::new();
    }
    if pinned.layout.is_empty() {
        return vec![ABOUT.ok(ID, format!("{} is complete", found.pins))];
    }
    let cure = "`wattline dataplane clean` (this ends forwarding), then start the agent again";
    pinned.layout.iter().map(|problem| ABOUT.problem(ID, problem, cure)).collect()
}

fn links(pinned: &Pinned) -> Vec<Finding> {
    const NOT_HERE: &str =
        "is pinned for an interface that is not here: deleted, or in another network namespace";
    let forward = pinned.links.iter().map(|(interface, state)| {
        let (about, id) = (About(interface), "attachment");
        match state {
            LinkState::Alive => about.ok(id, "the balancer is attached"),
            LinkState::NotHere => about.warning(
                id,
                format!("the balancer {NOT_HERE}"),
                format!("if it was deleted: `wattline dataplane detach {interface}`"),
            ),
            LinkState::Dead(why) => about.problem(
                id,
                format!("the balancer's pinned link is of no use: {why}"),
                format!(
                    "`wattline dataplane detach {interface}`, then `wattline dataplane attach {interface}`"
                ),
            ),
        }
    });
    let decap = pinned.decap.iter().map(|(interface, state)| {
        let (about, id) = (About(interface), "decap");
        match state {
            LinkState::Alive => about.ok(id, "encapsulation is removed"),
            LinkState::NotHere => about.note(
                id,
                format!("decapsulation {NOT_HERE}"),
                format!("if it was deleted: `wattline decap detach {interface}`"),
            ),
            LinkState::Dead(why) => about.problem(
                id,
                format!("encapsulation is not removed: {why}"),
                format!(
                    "`wattline decap attach {interface} --allow PREFIX` with the load balancers' addresses"
                ),
            ),
        }
    });
    forward.chain(decap).collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Severity, tests::find};
    use super::*;

    fn running() -> Running {
        Running {
            version: "1.2.3".to_owned(),
            pid: 7,
            services: 2,
            config_path: "/etc/wattline/wattline.toml".to_owned(),
            config_error: None,
            interface_errors: Vec::new(),
        }
    }

    /// One link of each kind in this state.
    fn pinned(state: LinkState) -> Pinned {
        Pinned {
            exists: true,
            layout: Vec::new(),
            links: vec![("eth0".to_owned(), state.clone())],
            decap: vec![("eth1".to_owned(), state)],
        }
    }

    fn good() -> Installation {
        Installation {
            agent: Agent::Running(running()),
            version: "1.2.3",
            pins: "/sys/fs/bpf/wattline/v1".to_owned(),
            pinned: Ok(pinned(LinkState::Alive)),
            other_layouts: Vec::new(),
        }
    }

    #[test]
    fn a_good_installation_has_nothing_but_ok() {
        let findings = judge(&good());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
        assert_eq!(find(&findings, "decap").subject, "eth1");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_cure() {
        type Spoil = fn(&mut Installation);
        let cases: [(&str, Severity, &str, Spoil); 13] = [
            ("agent", Severity::Warning, "forwards on", |f| f.agent = Agent::Absent),
            ("agent", Severity::Note, "nothing is pinned", |f| {
                (f.agent, f.pinned) = (Agent::Absent, Ok(Pinned::default()));
            }),
            ("agent", Severity::Problem, "timeout", |f| f.agent = Agent::Failed("timeout".to_owned())),
            ("agent", Severity::Note, "1.2.2", |f| {
                f.agent = Agent::Running(Running { version: "1.2.2".to_owned(), ..running() });
            }),
            ("config", Severity::Problem, "a:1:2: bad", |f| {
                let error = Some("a:1:2: bad\nb:3:4: worse".to_owned());
                f.agent = Agent::Running(Running { config_error: error, ..running() });
            }),
            ("attachment", Severity::Problem, "cannot attach: busy", |f| {
                let errors = vec![("eth9".to_owned(), "busy".to_owned())];
                f.agent = Agent::Running(Running { interface_errors: errors, ..running() });
                f.pinned = Ok(Pinned::default());
            }),
            ("pins", Severity::Note, "denied", |f| f.pinned = Err("denied".to_owned())),
            ("pins", Severity::Problem, "RINGS is missing", |f| {
                f.pinned = Ok(Pinned {
                    exists: true,
                    layout: vec!["RINGS is missing".to_owned()],
                    ..Pinned::default()
                });
            }),
            ("attachment", Severity::Problem, "dead", |f| {
                f.pinned = Ok(pinned(LinkState::Dead("dead".to_owned())));
            }),
            ("decap", Severity::Problem, "dead", |f| {
                f.pinned = Ok(pinned(LinkState::Dead("dead".to_owned())));
            }),
            ("attachment", Severity::Warning, "another network", |f| {
                f.pinned = Ok(pinned(LinkState::NotHere));
            }),
            ("decap", Severity::Note, "another network", |f| f.pinned = Ok(pinned(LinkState::NotHere))),
            ("other-layout", Severity::Warning, "wattline/v0", |f| {
                f.other_layouts = vec!["/sys/fs/bpf/wattline/v0".to_owned()];
            }),
        ];
        for (id, severity, text, spoil) in cases {
            let mut installation = good();
            spoil(&mut installation);
            let findings = judge(&installation);
            let finding = find(&findings, id);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.finding.contains(text), "{finding:?}");
            assert!(!finding.finding.contains('\n'), "{finding:?}");
        }
    }
}
