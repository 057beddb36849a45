"""As much of curl as the printed commands use, for machines that have none."""

import argparse
import sys

import httpx

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("-N", action="store_true")
parser.add_argument("-H", dest="headers", action="append", default=[])
parser.add_argument("-d", dest="body")
given = parser.parse_args()

headers = [tuple(header.split(": ", 1)) for header in given.headers]
method = "GET" if given.body is None else "POST"
sys.stdout.write(httpx.request(method, given.url, headers=headers, content=given.body, trust_env=False).text)
