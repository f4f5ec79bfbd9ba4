//! The table of key exchange methods. A new method needs a variant of [`Group`], a row in this
//! table and a file in this directory.

use std::fmt;

use super::diffie_hellman::DiffieHellman;
use super::ecp::{Ecp, P256, P384};
use super::method::KeyExchangeMethod;
use super::modp::{KeyExchange, Modp2048, Modp3072, Modp4096};
use super::p521::P521;
use super::x25519::X25519;
use crate::config::Group;

macro_rules! methods {
    ($($group:ident = $transform_id:literal $name:literal $microseconds:literal $method:ty;)+) => {
        impl Group {
            /// Returns the transform ID of the method, which is also in the Key Exchange payload.
            pub fn number(self) -> u16 {
                match self {
                    $(Self::$group => $transform_id,)+
                }
            }

            /// Returns the method with this transform ID, or `None` if we do not support it.
            pub fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($transform_id => Some(Self::$group),)+
                    _ => None,
                }
            }

            /// Returns the time that both computations of the responder take on a slow processor,
            /// microseconds. It is 0 if they take so little time that unauthenticated initiators
            /// need no limit.
            pub(crate) fn expense(self) -> u32 {
                match self {
                    $(Self::$group => $microseconds,)+
                }
            }

            pub(super) fn method(self) -> &'static dyn KeyExchangeMethod {
                match self {
                    $(Self::$group => &<$method>::METHOD,)+
                }
            }
        }

        impl fmt::Display for Group {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$group => $name,)+
                })
            }
        }
    };
}

// Columns: group, transform ID, name in logs and errors, expense (microseconds), implementation.
methods! {
    Modp2048 = 14 "MODP_2048" 1_500 DiffieHellman<<Modp2048 as KeyExchange>::Pair>;
    Modp3072 = 15 "MODP_3072" 4_000 DiffieHellman<<Modp3072 as KeyExchange>::Pair>;
    Modp4096 = 16 "MODP_4096" 7_500 DiffieHellman<<Modp4096 as KeyExchange>::Pair>;
    P256 = 19 "ECP_256" 0 DiffieHellman<Ecp<P256>>;
    P384 = 20 "ECP_384" 2_000 DiffieHellman<Ecp<P384>>;
    P521 = 21 "ECP_521" 4_000 DiffieHellman<P521>;
    X25519 = 31 "CURVE_25519" 0 DiffieHellman<X25519>;
}
