//! Where connections come in: plain or over TLS, each with the moment it ends.
//!
//! What `actix_web::HttpServer` would do, with [`Timed`] between socket and server, for which that has no place.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol};
use actix_server::{GracefulShutdownSignal, ServerBuilder};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_tls::accept::TlsError;
use actix_tls::accept::rustls_0_23::{Acceptor, TlsStream};
use actix_web::dev::AppConfig;
use actix_web::rt::net::TcpStream;
use actix_web::web;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::idle::Timed;
use crate::error::{Error, Result};
use crate::routes;
use crate::server::ApiState;

/// Time a client has to take note that its connection is closed.
const DISCONNECT: Duration = Duration::from_secs(1);

/// Serves what comes in at `listener`.
///
/// # Errors
/// `Internal` if the listener cannot be used.
pub(crate) fn listen(
    builder: ServerBuilder,
    listener: TcpListener,
    tls: Option<ServerConfig>,
    state: &web::Data<ApiState>,
) -> Result<ServerBuilder> {
    let failed = |source| Error::Internal { what: "listening", source: Some(Box::new(source)) };
    let address = listener.local_addr().map_err(failed)?;
    let (state, signal) = (state.clone(), builder.graceful_shutdown_signal());
    let name = format!("http-{address}");
    let listening = match tls {
        None => builder.listen(name, listener, move || {
            let edge = state.config.edge.clone();
            let timed = move |socket: TcpStream| {
                let peer = socket.peer_addr().ok();
                let timed = Timed::new(socket, &edge);
                async move { Ok::<_, DispatchError>((timed, Protocol::Http1, peer)) }
            };
            fn_service(timed).and_then(served(&state, &signal, address))
        }),
        Some(mut tls) => {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            builder.listen(name, listener, move || {
                let edge = state.config.edge.clone();
                let timed = move |socket: TlsStream<TcpStream>| {
                    let peer = socket.get_ref().0.peer_addr().ok();
                    let timed = Timed::new(socket, &edge);
                    async move { Ok((timed, Protocol::Http1, peer)) }
                };
                let acceptor = Acceptor::new(tls.clone()).map_err(TlsError::into_service_error);
                acceptor
                    .and_then(fn_service(timed))
                    .and_then(served(&state, &signal, address).map_err(TlsError::Service))
            })
        }
    };
    listening.map_err(failed)
}

/// Returns what reads requests from a connection and answers them.
fn served<T>(
    state: &web::Data<ApiState>,
    signal: &GracefulShutdownSignal,
    address: SocketAddr,
) -> impl ServiceFactory<
    (Timed<T>, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
> + use<T>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let edge = &state.config.edge;
    let (connections, signal) = (state.connections.clone(), signal.clone());
    let app = routes::app(state.clone()).into_factory();
    let app = app.map_err(|error: actix_web::Error| error.error_response());
    HttpService::build()
        .graceful_shutdown_signal(move || {
            let signal = signal.clone();
            async move { signal.notified().await }
        })
        .keep_alive(Duration::from_secs(edge.keep_alive_s.into()))
        .client_request_timeout(Duration::from_millis(edge.header_timeout_ms.into()))
        .client_disconnect_timeout(DISCONNECT)
        .local_addr(address)
        .on_connect_ext(move |socket: &Timed<T>, kept| connections.count(socket.ends(), kept))
        .finish(map_config(app, |()| AppConfig::default()))
}
