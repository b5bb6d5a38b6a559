//! Health checks against real servers on the loopback, most of them hostile.
//!
//! What is asserted is what a probe finds, never how long it takes; the patience only catches probes that never end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lb_userspace::health::check::{MAX_HEAD_BYTES, check};
use lb_userspace::health::{
    Failure, Health, HealthMonitor, HttpProbe, Phase, Probe, ProbeKind, Settings, Target, TargetId,
    Thresholds,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// For probes that should find something: never reached.
const PLENTY: Duration = Duration::from_secs(30);
/// For probes that should run into their deadline.
const SHORT: Duration = Duration::from_millis(400);

/// Serves every connection with `handle`.
async fn serve<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    address
}

/// Reads a request's headers.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&request).into_owned()
}

/// Answers every request with `answer` and closes.
async fn serve_answer(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer: Arc<[u8]> = answer.into().into();
    serve(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
            // Unread bytes would turn the close into a reset.
            let _ = stream.read(&mut [0; 1024]).await;
        }
    })
    .await
}

/// Sends `head` once and then `piece` for ever, at most one a millisecond if `slowly`.
async fn serve_for_ever(head: &'static str, piece: &'static [u8], slowly: bool) -> SocketAddr {
    serve(move |mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(piece).await.is_ok() {
            if slowly {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await
}

fn http(body: Option<&str>) -> HttpProbe {
    HttpProbe {
        path: "/healthz?full=1".into(),
        host: None,
        statuses: vec![200, 204],
        body: body.map(str::to_owned),
        max_body_bytes: 4096,
    }
}

fn probe(address: SocketAddr, kind: ProbeKind, timeout: Duration) -> Probe {
    let thresholds = Thresholds { rise: 2, fall: 2 };
    Probe { address, kind, interval: Duration::from_millis(20), timeout, thresholds }
}

async fn run(probe: Probe) -> Result<(), Failure> {
    tokio::time::timeout(2 * PLENTY, check(&probe)).await.expect("the probe never ends")
}

async fn get(address: SocketAddr, body: Option<&str>) -> Result<(), Failure> {
    run(probe(address, ProbeKind::Http(http(body)), PLENTY)).await
}

async fn get_in_vain(address: SocketAddr, body: Option<&str>) -> Phase {
    match run(probe(address, ProbeKind::Http(http(body)), SHORT)).await {
        Err(Failure::TimedOut { phase, after }) => {
            assert_eq!(after, SHORT);
            phase
        }
        other => panic!("expected to time out: {other:?}"),
    }
}

/// An address that is taken, so that nobody else gets it, but not listened on.
fn closed_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let address = socket.local_addr().expect("address");
    (socket, address)
}

#[tokio::test]
async fn a_good_answer_is_success() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nall is ok here",
        "HTTP/1.0 200 OK\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let address = serve_answer(answer).await;
        assert_eq!(get(address, Some("ok")).await, Ok(()), "{answer:?}");
        assert_eq!(get(address, None).await, Ok(()), "{answer:?}");
        assert_eq!(get(address, Some("")).await, Ok(()), "{answer:?}");
        assert_eq!(run(probe(address, ProbeKind::Tcp, PLENTY)).await, Ok(()));
    }
    let no_content = serve_answer("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(get(no_content, None).await, Ok(()));
}

#[tokio::test]
async fn the_request_is_what_servers_expect() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let tell = tell.clone();
        async move {
            let request = read_request(&mut stream).await;
            let _ = tell.send(request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let mut asked = http(None);
    for host in [None, Some("www.example.org")] {
        asked.host = host.map(str::to_owned);
        assert_eq!(run(probe(address, ProbeKind::Http(asked.clone()), PLENTY)).await, Ok(()));
        let request = told.recv().await.expect("a request").to_lowercase();
        assert!(request.starts_with("get /healthz?full=1 http/1.1\r\n"), "{request}");
        let host = host.map_or_else(|| address.to_string(), str::to_owned);
        for line in [format!("\r\nhost: {host}\r\n"), "\r\nconnection: close\r\n".into()] {
            assert!(request.contains(&line), "{line:?} in {request:?}");
        }
    }
}

#[tokio::test]
async fn a_wrong_status_is_named() {
    let address = serve_answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nok").await;
    let failure = get(address, Some("ok")).await.expect_err("a failure");
    assert_eq!(failure, Failure::Status { got: 503, wanted: vec![200, 204] });
    assert_eq!(failure.to_string(), "status 503 not in [200, 204]");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    let elsewhere = serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {}
    })
    .await;
    let answer = format!("HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\r\n");
    let address = serve_answer(answer).await;
    assert_eq!(get(address, None).await, Err(Failure::Status { got: 302, wanted: vec![200, 204] }));
    let mut wanted = http(None);
    wanted.statuses = vec![302];
    assert_eq!(run(probe(address, ProbeKind::Http(wanted), PLENTY)).await, Ok(()));
    assert_eq!(visits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_without_what_is_wanted_fails() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndown",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\no k",
    ] {
        let address = serve_answer(answer).await;
        assert_eq!(get(address, Some("ok")).await, Err(Failure::Body { wanted: "ok".into() }), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_wanted_is_found_across_pieces() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n").await;
        for byte in b"all is well!!" {
            let _ = stream.write_all(&[*byte]).await;
            let _ = stream.flush().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(get(address, Some("is well!!")).await, Ok(()));
}

#[tokio::test]
async fn a_body_is_read_up_to_its_limit() {
    let limit = http(None).max_body_bytes;
    for (body, expected) in [
        ([vec![b'x'; limit - 2], b"ok".to_vec()].concat(), Ok(())),
        ([vec![b'x'; limit - 1], b"ok".to_vec()].concat(), Err(Failure::BodyTooLarge { limit })),
        (vec![b'x'; limit], Err(Failure::Body { wanted: "ok".into() })),
        (vec![b'x'; limit + 1], Err(Failure::BodyTooLarge { limit })),
    ] {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let address = serve_answer([head.into_bytes(), body].concat()).await;
        assert_eq!(get(address, Some("ok")).await, expected, "{length} bytes");
    }
}

#[tokio::test]
async fn an_endless_body_fails() {
    let address = serve_for_ever("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 8192], false).await;
    assert_eq!(get(address, Some("ok")).await, Err(Failure::BodyTooLarge { limit: 4096 }));
    // Nobody wants the body, so nobody reads it.
    assert_eq!(get(address, None).await, Ok(()));
}

#[tokio::test]
async fn endless_headers_fail() {
    for (head, piece) in [
        ("HTTP/1.1 200 OK\r\n", &b"x-more: and more\r\n"[..]),
        ("HTTP/1.1 200 OK\r\nx-long: ", b"xxxxxxxxxxxxxxxx"),
        ("HTTP/1.1 200 ", b"OK"),
    ] {
        let address = serve_for_ever(head, piece, false).await;
        assert_eq!(get(address, None).await, Err(Failure::HeadTooLarge), "{head:?}");
    }
}

#[tokio::test]
async fn large_complete_headers_fail() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
    for answer in [many, long] {
        let address = serve_answer(answer).await;
        assert_eq!(get(address, None).await, Err(Failure::HeadTooLarge));
    }
}

#[tokio::test]
async fn the_deadline_covers_everything() {
    let silent = serve(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    assert_eq!(get_in_vain(silent, None).await, Phase::Head);
    // Accepting is all that a TCP check asks for.
    assert_eq!(run(probe(silent, ProbeKind::Tcp, PLENTY)).await, Ok(()));

    let drips_headers = serve_for_ever("HTTP/1.1 200 OK\r\nx: ", b"x", true).await;
    assert_eq!(get_in_vain(drips_headers, None).await, Phase::Head);
    let drips_body = serve_for_ever("HTTP/1.1 200 OK\r\n\r\n", b"x", true).await;
    assert_eq!(get_in_vain(drips_body, Some("ok")).await, Phase::Body);
    let goes_on = serve_for_ever("", b"HTTP/1.1 100 Continue\r\n\r\n", false).await;
    assert_eq!(get_in_vain(goes_on, None).await, Phase::Head);
}

#[tokio::test]
async fn the_deadline_covers_connecting() {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let listener = socket.listen(0).expect("listen");
    let address = listener.local_addr().expect("address");
    // Fill the queue of connections nobody accepts; then the kernel drops the next ones' first packets.
    let mut held = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        held.push(stream.expect("connect"));
    }
    for kind in [ProbeKind::Tcp, ProbeKind::Http(http(None))] {
        let result = run(probe(address, kind, SHORT)).await;
        assert_eq!(result, Err(Failure::TimedOut { phase: Phase::Connect, after: SHORT }));
    }
}

#[tokio::test]
async fn a_refused_connection_is_told_as_such() {
    let (_held, address) = closed_port();
    assert_eq!(run(probe(address, ProbeKind::Tcp, PLENTY)).await, Err(Failure::Refused));
    assert_eq!(get(address, None).await, Err(Failure::Refused));
    assert_eq!(run(probe(address, ProbeKind::None, PLENTY)).await, Ok(()), "none asks nobody");
}

#[tokio::test]
async fn answers_that_are_no_http_are_malformed() {
    for answer in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"\0\x01\x02\x03\xff\xfe",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
    ] {
        let address = serve_answer(answer).await;
        let result = get(address, None).await;
        assert!(
            matches!(result, Err(Failure::Malformed(_))),
            "{:?}: {result:?}",
            String::from_utf8_lossy(answer)
        );
    }
    let bad_chunk = serve_answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
    let result = get(bad_chunk, Some("ok")).await;
    assert!(matches!(result, Err(Failure::Malformed(_))), "{result:?}");
}

#[tokio::test]
async fn broken_off_answers_are_told_as_such() {
    let nothing = serve_answer("").await;
    assert_eq!(get(nothing, None).await, Err(Failure::Closed { phase: Phase::Head }));
    let half_head = serve_answer("HTTP/1.1 200 OK\r\ncont").await;
    assert_eq!(get(half_head, None).await, Err(Failure::Closed { phase: Phase::Head }));
    for half_body in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let address = serve_answer(half_body).await;
        assert_eq!(
            get(address, Some("ok")).await,
            Err(Failure::Closed { phase: Phase::Body }),
            "{half_body:?}"
        );
    }
    let resets = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.set_zero_linger();
    })
    .await;
    assert_eq!(get(resets, None).await, Err(Failure::Reset { phase: Phase::Head }));
}

#[tokio::test]
async fn a_backend_that_dies_and_comes_back_is_followed() {
    let (monitor, mut transitions) = HealthMonitor::spawn(Settings::with_seed(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let id = TargetId { service: "web".into(), backend: "web-1".into() };
    let target = Target { id: id.clone(), probe: probe(address, ProbeKind::Tcp, PLENTY), adopt: None };
    monitor.set_targets(vec![target]).await;

    let mut seen = Vec::new();
    let mut listener = Some(listener);
    for expected in [Health::Healthy, Health::Unhealthy, Health::Healthy] {
        let told =
            tokio::time::timeout(PLENTY, transitions.recv()).await.expect("a transition").expect("monitor");
        assert_eq!((&told.id, told.to), (&id, expected));
        seen.push(told.reason);
        listener = if listener.take().is_some() {
            None
        } else {
            let socket = TcpSocket::new_v4().expect("socket");
            socket.set_reuseaddr(true).expect("reuse");
            socket.bind(address).expect("bind again");
            Some(socket.listen(16).expect("listen again"))
        };
    }
    // The listener's own close resets a connection that nobody accepted; after that they are refused.
    assert!(seen[0].is_none() && seen[1].is_some() && seen[2].is_none(), "{seen:?}");
    let status = monitor.status(&id).expect("a status");
    assert!(status.last.is_some() && status.probes >= 5, "{status:?}");
    monitor.shutdown().await;
}
