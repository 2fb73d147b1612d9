"""Every line of a tty as a QoS 1 message to a broker of one's own: `CONFIG PORT TTY TOPIC`; starts that broker too."""

import subprocess
import sys
import time

import paho.mqtt.client as mqtt
import serial  # type: ignore[import-untyped]
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.loss.broker import program


def main(config: str, port: str, tty: str, topic: str) -> None:
    """Run until killed; the broker is in the same session, so that one signal ends both."""
    broker = subprocess.Popen([program(), "-c", config])
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="line", clean_session=False)
    client.reconnect_delay_set(1, 1)
    client.max_queued_messages_set(0)
    for _ in range(100):
        try:
            client.connect("127.0.0.1", int(port))
            break
        except OSError:
            time.sleep(0.05)
    client.loop_start()
    with serial.Serial(tty, 115200) as line:
        while broker.poll() is None:
            client.publish(topic, line.readline().strip(), qos=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
