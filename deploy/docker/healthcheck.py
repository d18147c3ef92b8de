"""The image's health check: whether the server in this container can serve and write.

HEALTH_URL says where, if not where the image's own configuration does: https:// with TLS.  No
certificate is verified, since none is made out for this loopback address, and nothing is told.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

URL = os.environ.get("HEALTH_URL", "http://127.0.0.1:8080/readyz")

unverified = ssl.create_default_context()
unverified.check_hostname = False
unverified.verify_mode = ssl.CERT_NONE
# Without proxies, which the container's environment may name.
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
)
try:
    with opener.open(URL, timeout=4) as answer:
        print(answer.read(1000).decode(errors="replace"))
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code}: {error.read(1000).decode(errors='replace')}")
except OSError as error:
    sys.exit(f"{URL}: {error}")
