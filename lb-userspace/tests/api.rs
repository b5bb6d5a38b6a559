//! The API's edges: methods, limits, conditions, and the socket itself.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lb_userspace::api::ApiHandle;
use lb_userspace::api::client::{Client, ClientError};
use lb_userspace::api::server;
use lb_userspace::api::types::Status;
use support::FakeAgent;

/// Sends a request as it is; gives status and body.
fn raw(agent: &FakeAgent, request: &str, body: &[u8]) -> (u16, serde_json::Value) {
    let mut stream = UnixStream::connect(agent.socket()).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let head = format!("{request}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).expect("sent");
    // The server may refuse by the length alone and close before it has read everything.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, serde_json::from_str(body).unwrap_or(serde_json::Value::Null))
}

#[test]
fn refusals_of_every_kind_are_json() {
    let agent = FakeAgent::start();
    let too_long = vec![b' '; 64 * 1024 + 1];
    let cases: &[(&str, &[u8], u16, &str)] = &[
        ("GET /v2/status HTTP/1.1", b"", 404, "there is no /v2/status"),
        ("DELETE /v1/status HTTP/1.1", b"", 405, "does not take DELETE"),
        ("GET /v1/services/x HTTP/1.1", b"", 404, "no service"),
        ("GET /v1/route?source=1 HTTP/1.1", b"", 400, "source"),
        (
            "GET /v1/route?source=::1&destination=::2&destination_port=70000&protocol=tcp HTTP/1.1",
            b"",
            400,
            "destination_port: number too large",
        ),
        ("POST /v1/services HTTP/1.1", b"{}", 422, "missing field"),
        ("POST /v1/services HTTP/1.1", b"\xff", 422, "does not fit"),
        ("POST /v1/services HTTP/1.1", &too_long, 413, "length limit exceeded"),
        ("POST /v1/config/save?dry_run=true HTTP/1.1", b"", 422, "no dry run"),
        ("POST /v1/config/save?dryrun=true HTTP/1.1", b"", 400, "dryrun"),
        ("POST /v1/config/save HTTP/1.1\r\nif-generation: x", b"", 422, "not a number"),
        ("POST /v1/config/save HTTP/1.1\r\nif-generation: 9", b"", 409, "generation 1, not 9"),
        ("POST /v1/config/save?if_generation=9 HTTP/1.1", b"", 409, "generation 1, not 9"),
        (
            "POST /v1/config/save?if_generation=1 HTTP/1.1\r\nif-generation: 2",
            b"",
            422,
            "different generations",
        ),
        ("PUT /v1/config HTTP/1.1", b"[node]\nx = 1\n", 422, "not valid"),
        ("PUT /v1/config HTTP/1.1", b"\xff", 422, "not valid"),
        ("PUT /v1/services/web/backends/web-1/admin HTTP/1.1", b"{\"admin\":\"off\"}", 422, "off"),
        ("POST /v1/dataplane/attach HTTP/1.1", b"{\"interface\":\"eth9\"}", 500, "native"),
    ];
    for (request, body, status, text) in cases {
        let (got, answer) = raw(&agent, request, body);
        assert_eq!(got, *status, "{request}: {answer}");
        assert_eq!(answer["schema_version"], 1, "{request}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(text), "{request}: {answer}");
        assert!(answer["code"].is_string(), "{request}: {answer}");
    }
}

#[test]
fn a_whole_configuration_may_be_large_and_its_problems_are_placed() {
    let agent = FakeAgent::start();
    let mut text = String::from(support::CONFIG);
    for number in 0..3000 {
        use std::fmt::Write as _;
        let address = std::net::Ipv4Addr::from(0x0a01_0000 + number);
        write!(text, "[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}\"\n").unwrap();
    }
    assert!(text.len() > 64 * 1024);
    let (status, answer) = raw(&agent, "PUT /v1/config?dry_run=true HTTP/1.1", text.as_bytes());
    assert_eq!((status, &answer["changed"]), (200, &true.into()));
    assert_eq!(answer["diff"]["changes"].as_array().unwrap().len(), 3000);
    let (status, answer) = raw(&agent, "PUT /v1/config HTTP/1.1\r\nif-generation: 1", b"[node]\nx = 1\n");
    assert_eq!(
        (status, &answer["problems"][0]["line"], &answer["problems"][0]["column"]),
        (422, &2.into(), &1.into())
    );
}

#[test]
fn the_description_is_served() {
    let agent = FakeAgent::start();
    let (status, answer) = raw(&agent, "GET /v1/openapi.json HTTP/1.1", b"");
    assert_eq!((status, answer["info"]["title"].as_str()), (200, Some("Wattline")));
}

#[test]
fn only_owner_and_group_may_use_the_socket() {
    let agent = FakeAgent::start();
    let mode = std::fs::metadata(agent.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let names: Vec<_> =
        std::fs::read_dir(agent.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary name is left: {names:?}");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wattline.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead socket stays behind");
    let listener = server::bind(&path).unwrap();
    let error = server::bind(&path).unwrap_err().to_string();
    assert!(error.contains("another agent answers"), "{error}");
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let error = server::bind(&path).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn an_owner_that_is_gone_is_an_error_not_a_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wattline.sock");
    let listener = server::bind(&path).unwrap();
    let (handle, requests) = ApiHandle::channel(1, Duration::from_mins(1));
    drop(requests);
    tokio::spawn(server::serve(listener, handle, std::future::pending()));
    let client = Client::new(&path, Duration::from_secs(20));
    match client.get::<Status>("/v1/status").await {
        Err(ClientError::Refused(error)) => assert!(error.message.contains("shutting down"), "{error}"),
        other => panic!("{other:?}"),
    }
}
