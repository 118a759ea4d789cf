"""Real services for tests: Apache Kafka, Google's Pub/Sub emulator, PostgreSQL; and a mock Kafka cluster.

A test asks for ``kafka_service``, ``kafka_proxy``, ``pubsub_service``, ``postgres_service`` or
``mock_kafka``. Each service starts on first use, once per pytest run (pytest-xdist's workers share it), and
climbs one ladder:

1. an address: ``TEST_KAFKA_BOOTSTRAP``, ``TEST_PUBSUB_EMULATOR_HOST``, ``TEST_POSTGRES_URL``;
2. a container, where a Docker Engine answers and has, or can pull, the image;
3. the programs of this machine;
4. a skip that names what to install. With ``REQUIRE_SERVICES=1`` this is a failure.

Who does what: ``fixtures`` are what tests ask for; ``service`` is the handle they get; ``keeper`` is a
process per service that owns server and proxy, and ends both when pytest ends in any way, SIGKILL included;
``engines`` and ``containers`` run servers; ``kafka_server``, ``pubsub_server`` and ``postgres_server`` say
which. Under pytest-xdist an outage or a proxy rule for a prefix is seen by all workers: a test that takes a
service down asks for ``mortal_kafka``, ``mortal_pubsub`` or ``mortal_postgres``, which is then another one.
"""

from .errors import NotInstalledError, ServiceError
from .kafka import KafkaService, RemoteProxy
from .kafka_proxy import KafkaProxy
from .mock_kafka import MockKafka
from .postgres import PostgresService
from .pubsub import PubSubService
from .service import Run, Service, give_up

__all__ = [
    "KafkaProxy",
    "KafkaService",
    "MockKafka",
    "NotInstalledError",
    "PostgresService",
    "PubSubService",
    "RemoteProxy",
    "Run",
    "Service",
    "ServiceError",
    "give_up",
]
