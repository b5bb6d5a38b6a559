//! Tests of reading, checking, writing and comparing configurations.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const FULL: &str = r#"
[node]
interfaces = ["eth0", "eth1"]
xdp_mode = "generic"
flow_hash_key = "000102030405060708090a0b0c0d0e0f"
source_v4 = "10.200.0.0/16"
source_v6 = "fd00:200::/64"
gue_port = 6081

[limits]
services = 16
backends = 64
ring_slots = 200000

[health]
interval_ms = 500
rise = 1

[[service]]
name = "web"
address = "192.0.2.10"
port = 80
protocol = "tcp"
mode = "ipip"
ring_slots = 65537
all_down = "drop"
health = { type = "http", path = "/healthz", status = [200, 204], body = "ok", host = "x", port = 8080, fall = 5 }
[[service.backend]]
name = "web-1"
address = "10.0.0.11"
weight = 7
admin = "drain"
site = "berlin"
[[service.backend]]
name = "web-2"
address = "2001:db8::2"

[[service]]
name = "dns"
address = "2001:db8:1::53"
port = "any"
protocol = "udp"
mode = "l2"
"#;

fn full() -> Config {
    parse(FULL, "full.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// The first problem as `LINE:COLUMN: message`.
fn refusal(text: &str) -> String {
    let error = parse(text, "c.toml").expect_err("refused");
    let problem = &error.problems[0];
    assert!(!problem.help.is_empty(), "no cure: {problem}");
    format!("{}:{}: {}", problem.line.unwrap_or(0), problem.column.unwrap_or(0), problem.message)
}

fn service(extra: &str) -> String {
    format!("[[service]]\nname = \"web\"\naddress = \"192.0.2.10\"\nport = 80\nprotocol = \"tcp\"\n{extra}")
}

fn backend(extra: &str) -> String {
    service(&format!("[[service.backend]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\n{extra}"))
}

#[test]
fn every_field_is_read() {
    let config = full();
    assert_eq!(config.node.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.node.xdp_mode, XdpMode::Generic);
    assert_eq!(config.node.flow_hash_key, Some(FlowHashKey(std::array::from_fn(|i| i as u8))));
    assert_eq!(config.node.source_v4, Some("10.200.0.0/16".parse().unwrap()));
    assert_eq!(config.node.source_v6, Some("fd00:200::/64".parse().unwrap()));
    assert_eq!(config.node.gue_port, 6081);
    assert_eq!(config.limits, Limits { services: 16, backends: 64, ring_slots: 200_000 });
    let web = config.service("web").unwrap();
    assert_eq!((web.port, web.protocol, web.mode), (Port::Number(80), Protocol::Tcp, Mode::Ipip));
    assert_eq!((web.ring_slots, web.all_down), (Some(65_537), AllDown::Drop));
    let one = web.backend("web-1").unwrap();
    assert_eq!((one.weight, one.admin, one.site.as_deref()), (7, Admin::Drain, Some("berlin")));
    let two = web.backend("web-2").unwrap();
    assert_eq!((two.weight, two.admin, two.site.as_deref()), (100, Admin::Ready, None));
    let check = web.health(&config.health);
    assert_eq!((check.interval.as_millis(), check.timeout.as_millis()), (500, 500));
    assert_eq!((check.rise, check.fall), (1, 5));
    let HealthProbe::Http { port, path, status, body, host, max_body_bytes } = check.probe else {
        panic!("not http: {:?}", check.probe)
    };
    assert_eq!((port, path.as_str(), status), (8080, "/healthz", vec![200, 204]));
    assert_eq!((body.as_deref(), host.as_deref(), max_body_bytes), (Some("ok"), Some("x"), 65_536));
    let dns = config.service("dns").unwrap();
    assert_eq!((dns.port, dns.protocol), (Port::Any, Protocol::Udp));
    assert_eq!(dns.health(&config.health).probe, HealthProbe::None);
}

#[test]
fn an_empty_file_is_nothing_that_anybody_meant() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in ["", " \n\t\n"] {
        std::fs::write(file.path(), text).unwrap();
        let error = load(file.path()).unwrap_err().to_string();
        assert!(error.contains(":1:1: the file is empty"), "{error}");
    }
    std::fs::write(file.path(), "[node]").unwrap();
    assert_eq!(load(file.path()).unwrap(), Config::default());
}

#[test]
fn an_empty_text_is_the_default_configuration() {
    assert_eq!(parse("", "c.toml").unwrap(), Config::default());
    assert_eq!(parse("# nothing\n", "c.toml").unwrap(), Config::default());
}

#[test]
fn a_default_service_is_checked_by_tcp_on_its_port() {
    let config = parse(&service(""), "c.toml").unwrap();
    let check = config.services[0].health(&config.health);
    assert_eq!(check.probe, HealthProbe::Tcp { port: 80 });
    assert_eq!((check.interval.as_millis(), check.timeout.as_millis()), (2000, 1000));
    assert_eq!((check.rise, check.fall), (2, 3));
}

#[test]
fn refusals_name_place_and_reason() {
    let cases: &[(String, &str)] = &[
        (backend("weight = 70000\n"), r#"9:10: service "web": backend "web-1": weight 70000 is above 65535"#),
        (backend("weight = -1\n"), r#"9:10: service "web": backend "web-1": weight -1 is below 0"#),
        (
            backend("weight = \"7\"\n"),
            r#"9:10: service "web": backend "web-1": weight is a text, not a whole number"#,
        ),
        (
            backend("weight = 99999999999999999999999999999999999999999999\n"),
            r#"9:10: service "web": backend "web-1": weight "99999999999999999999999999999999999999999999" is far too large"#,
        ),
        (backend("wieght = 1\n"), r#"9:1: service "web": backend "web-1": unknown key "wieght""#),
        (backend("admin = \"off\"\n"), r#"9:9: service "web": backend "web-1": admin "off" is not known"#),
        (
            backend("site = \"a b\"\n"),
            r#"9:8: service "web": backend "web-1": site "a b" is not a valid label"#,
        ),
        (service("ring_slots = 100\n"), r#"6:14: service "web": ring_slots 100 is not a prime"#),
        (
            service("ring_slots = 0x1_0001\nmode = \"nat\"\n"),
            r#"7:8: service "web": mode "nat" is not known"#,
        ),
        (
            service("health = { type = \"icmp\" }\n"),
            r#"6:19: service "web": health: type "icmp" is not known"#,
        ),
        (
            service("health = { path = \"/x\" }\n"),
            r#"6:19: service "web": health: path means nothing to a check of type tcp"#,
        ),
        (
            service("health = { interval_ms = 100, timeout_ms = 200 }\n"),
            r#"6:44: service "web": health: timeout_ms 200 is above interval_ms 100"#,
        ),
        (
            service("[service.health]\ntype = \"http\"\npath = \"x\"\n"),
            r#"8:8: service "web": health: path "x" is not the path of a request"#,
        ),
        ("[[service]]\nname = \"a\"\n".to_owned(), r#"1:1: service "a": address is missing"#),
        ("x = 1".to_owned(), r#"1:1: unknown key "x""#),
        ("service = 3".to_owned(), "1:11: service is a number, not a list of tables"),
        ("[node]\ngue_port = 0\n".to_owned(), "2:12: node: gue_port 0 is below 1"),
        (
            "[node]\nsource_v4 = \"10.0.0.1/8\"\n".to_owned(),
            "2:13: node: source_v4 10.0.0.1/8 has bits set after its prefix",
        ),
        (
            "[node]\nflow_hash_key = \"secret\"\n".to_owned(),
            "2:17: node: flow_hash_key is not 32 hexadecimal digits",
        ),
        ("[node]\ninterfaces = [\"a\", \"a\"]\n".to_owned(), "2:14: node: interface \"a\" is listed twice"),
        ("[limits]\nservices = 0\n".to_owned(), "2:12: limits: services 0 is below 1"),
        (
            format!("[limits]\nring_slots = 7\n{}", service("ring_slots = 11\n")),
            "2:14: limits: 11 ring_slots are configured, above the limit of 7",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(&refusal(text), expected, "for\n{text}");
    }
}

#[test]
fn addresses_that_cannot_be_served_are_refused() {
    for (address, why) in [
        ("0.0.0.0", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("ff02::1", "multicast"),
        ("fe80::1", "link-local"),
        ("::ffff:192.0.2.1", "IPv4 address written as IPv6"),
        ("example.org", "not an IP address"),
        ("192.0.2.1:80", "not an IP address"),
    ] {
        let text = service("").replace("192.0.2.10", address);
        assert!(refusal(&text).contains(why), "{address}: {}", refusal(&text));
        assert!(refusal(&text).starts_with("3:11: "), "{}", refusal(&text));
    }
}

#[test]
fn clashes_are_refused() {
    let twice = format!("{}{}", service(""), service(""));
    let error = parse(&twice, "c.toml").unwrap_err();
    let messages: Vec<_> = error.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            r#"service "web": a service before has the same name"#,
            r#"service "web": address 192.0.2.10, port 80 and protocol tcp are those of service "web""#,
        ]
    );
    let extra = "[[service.backend]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\n";
    let error = parse(&backend(extra), "c.toml").unwrap_err();
    assert_eq!(error.problems.len(), 2, "{error}");
    let own = backend("").replace("10.0.0.1", "192.0.2.10");
    assert!(refusal(&own).contains("is the service's own"));
    let other_family =
        backend("").replace("protocol", "mode = \"l2\"\nprotocol").replace("10.0.0.1", "fd00::1");
    assert!(refusal(&other_family).contains("another family"));
    let any = format!("{}{}", service(""), service("").replace("web", "all").replace("80", "\"any\""));
    assert!(refusal(&any).contains("needs a port to check"));
    let fine = format!("{any}health = {{ port = 80 }}\n");
    assert!(parse(&fine, "c.toml").is_ok(), "any port beside one port of the same address is fine");
}

#[test]
fn a_udp_service_does_not_pretend_to_be_checked() {
    let text = service("health = { rise = 1 }\n").replace("tcp", "udp");
    assert!(refusal(&text).contains("not checked unless its health says a type"));
    let text =
        service("health = { type = \"tcp\", port = 8080 }\n").replace("\"tcp\"\nhealth", "\"udp\"\nhealth");
    let config = parse(&text, "c.toml").unwrap();
    assert_eq!(config.services[0].health(&config.health).probe, HealthProbe::Tcp { port: 8080 });
}

#[test]
fn all_problems_are_told_in_the_order_of_the_text() {
    let text = backend("weight = 70000\nfoo = 1\n").replace("port = 80", "port = 0");
    let error = parse(&text, "c.toml").unwrap_err();
    let lines: Vec<_> = error.problems.iter().map(|problem| problem.line.unwrap()).collect();
    assert_eq!(lines, [4, 9, 10], "{error}");
    let shown = error.to_string();
    assert!(shown.starts_with("c.toml:4:8: service \"web\": port 0 is below 1\n  help: "), "{shown}");
}

#[test]
fn grammar_errors_bytes_and_sizes_are_placed() {
    assert!(refusal("[node\n").starts_with("1:"), "{}", refusal("[node\n"));
    assert_eq!(refusal("a = 1\nb\0"), "2:2: a NUL byte");
    let error = parse_bytes(b"# \xc3\xa4\n\xff", "c.toml").unwrap_err();
    assert_eq!(error.to_string().lines().next(), Some("c.toml:2:1: byte 0xff is not UTF-8 text"));
    // Columns are characters, not bytes.
    assert_eq!(refusal("ä = 1").split(' ').next(), Some("1:1:"));
    assert!(refusal("node = { \"ä\" = 1, x = 2 }").starts_with("1:10: node: unknown key \"ä\""));
    let error = parse("node = { \"ä\" = 1, x = 2 }", "c.toml").unwrap_err();
    assert_eq!(error.problems[1].column, Some(19), "{error}");
    let error = parse("[node]\n[node]\n", "c.toml").unwrap_err();
    assert_eq!(error.problems[0].line, Some(2), "{error}");
}

#[test]
fn a_missing_file_is_one_problem_with_its_name() {
    let error = load(Path::new("/nowhere/c.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/c.toml: cannot open the file: No such file"), "{error}");
}

#[test]
fn edits_are_checked_without_places() {
    let mut config = full();
    let web = config.service_mut("web").unwrap();
    web.backends.push(Backend::new("web-3", "10.0.0.13".parse().unwrap()));
    web.backend_mut("web-1").unwrap().admin = Admin::Ready;
    assert_eq!(config.validate(), Ok(()));
    config.service_mut("web").unwrap().backends.push(Backend::new("web-3", "10.0.0.14".parse().unwrap()));
    let error = config.validate().unwrap_err();
    assert_eq!(
        error.to_string().lines().next(),
        Some(r#"service "web": backend "web-3": a backend of this service before has the same name"#)
    );
}

#[test]
fn differences_are_named() {
    let old = full();
    assert!(ConfigDiff::between(&old, &old).is_empty());
    let mut new = old.clone();
    new.node.flow_hash_key = Some(FlowHashKey([0xff; 16]));
    new.health.rise = None;
    let web = new.service_mut("web").unwrap();
    web.backends.reverse();
    web.backend_mut("web-1").unwrap().weight = 8;
    web.health.fall = Some(6);
    web.backends.push(Backend::new("web-3", "10.0.0.13".parse().unwrap()));
    new.services.remove(1);
    let shown = ConfigDiff::between(&old, &new).to_string();
    assert_eq!(
        shown,
        "\
~ node                flow_hash_key 0001... (hidden) -> ffff... (hidden)
~ health              rise 1 -> (not set)
- service  dns        address 2001:db8:1::53, all_down open, mode l2, port any, protocol udp
~ service  web        health.fall 5 -> 6
~ backend  web/web-1  weight 7 -> 8
+ backend  web/web-3  address 10.0.0.13, admin ready, weight 100
"
    );
}

fn any_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,12}"
}

fn any_health(protocol: Protocol, port: Port) -> impl Strategy<Value = HealthSettings> {
    let texts = (proptest::option::of("/[a-z]{0,8}"), proptest::option::of("\\PC{1,8}"));
    let numbers = (
        proptest::option::of(1u16..),
        proptest::option::of(300u32..5000),
        proptest::option::of(1u32..300),
        proptest::option::of(1u32..10),
        proptest::option::of(proptest::collection::vec(100u16..600, 1..4)),
    );
    (texts, numbers).prop_map(move |((path, body), (health_port, interval, timeout, rise, status))| {
        let http = path.is_some() || body.is_some() || status.is_some();
        let kind = match (http, protocol) {
            (true, _) => Some(HealthKind::Http),
            (false, Protocol::Udp) => Some(HealthKind::None),
            (false, Protocol::Tcp) => None,
        };
        HealthSettings {
            kind,
            path,
            body,
            status,
            port: health_port.or(if port == Port::Any { Some(80) } else { None }),
            interval_ms: interval,
            timeout_ms: timeout,
            rise,
            ..HealthSettings::default()
        }
    })
}

fn any_service(number: u32) -> impl Strategy<Value = Service> {
    let port = prop_oneof![Just(Port::Any), (1u16..).prop_map(Port::Number)];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (port, protocol).prop_flat_map(move |(port, protocol)| {
        let backends = proptest::collection::btree_map(any_name(), (any::<u16>(), any::<bool>()), 0..5);
        let ring = proptest::option::of(100u32..1000);
        (any_health(protocol, port), backends, ring, any::<bool>()).prop_map(
            move |(health, backends, ring, v6)| {
                let address: IpAddr = if v6 {
                    std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(number)).into()
                } else {
                    std::net::Ipv4Addr::from(0xc000_0200 + number).into()
                };
                let mut service = Service::new(format!("s{number}"), address, port, protocol);
                service.ring_slots = ring.map(next_prime);
                service.health = health;
                for (index, (name, (weight, drained))) in backends.into_iter().enumerate() {
                    let address = std::net::Ipv4Addr::from(0x0a00_0001 + index as u32);
                    let mut backend = Backend::new(name, address.into());
                    backend.weight = weight;
                    backend.admin = if drained { Admin::Maint } else { Admin::Ready };
                    backend.site = drained.then(|| "berlin".to_owned());
                    service.backends.push(backend);
                }
                service
            },
        )
    })
}

fn any_config() -> impl Strategy<Value = Config> {
    let services = (0u32..4).prop_flat_map(|count| (0..count).map(any_service).collect::<Vec<_>>());
    (services, any::<Option<[u8; 16]>>(), 1u16.., any::<bool>()).prop_map(
        |(services, key, gue_port, more)| {
            let mut config = Config { services, ..Config::default() };
            config.node.flow_hash_key = key.map(FlowHashKey);
            config.node.gue_port = gue_port;
            if more {
                config.node.interfaces = vec!["eth0".to_owned()];
                config.node.source_v6 = Some("fd00:200::/64".parse().unwrap());
                config.health.fall = Some(9);
            }
            config
        },
    )
}

proptest! {
    #[test]
    fn writing_and_reading_gives_the_same(config in any_config()) {
        prop_assert_eq!(config.validate().map_err(|error| error.to_string()), Ok(()));
        let text = config.to_toml();
        let again = parse(&text, "c.toml").map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&again, &config);
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Config>(&json).unwrap(), &config);
    }

    #[test]
    fn a_difference_is_empty_only_between_equals(old in any_config(), new in any_config()) {
        let diff = ConfigDiff::between(&old, &new);
        prop_assert_eq!(diff.is_empty(), old == new, "{}", diff);
    }

    #[test]
    fn any_bytes_are_refused_with_a_place_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse_bytes(&bytes, "c.toml") {
            prop_assert!(error.problems.iter().all(|problem| problem.line.is_some() && problem.column.is_some()));
        }
    }

    #[test]
    fn a_mutated_file_is_refused_with_a_place_or_taken(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[ -~\\n]{0,6}"), 1..4)
    ) {
        let mut text: Vec<char> = FULL.chars().collect();
        for (at, length, new) in cuts {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        match parse(&text, "c.toml") {
            Ok(config) => prop_assert_eq!(config.validate().map_err(|error| error.to_string()), Ok(())),
            Err(error) => {
                let lines = text.lines().count() + 1;
                for problem in &error.problems {
                    prop_assert!(problem.line.is_some_and(|line| line >= 1 && line <= lines));
                    prop_assert!(problem.column.is_some_and(|column| column >= 1));
                    prop_assert!(!problem.message.is_empty() && !problem.help.is_empty());
                }
            }
        }
    }
}

#[test]
fn every_example_is_valid_and_explained() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let config = load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(config.services.iter().all(|service| !service.backends.is_empty()), "{}", path.display());
            assert!(std::fs::read_to_string(&path).unwrap().starts_with("# "), "{}", path.display());
            assert_eq!(parse(&config.to_toml(), "again").unwrap(), config);
            seen += 1;
        }
    }
    assert!(seen >= 7, "only {seen} examples");
}
