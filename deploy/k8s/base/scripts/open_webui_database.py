"""Bring Open WebUI's database to the version of this image (`migrate`), or wait until that was done (`wait`).

Runs in Open WebUI's image, with its settings. Its replicas have no lock for this: of two that find an empty database,
or one without settings, one crashes (seen with 0.12.4).
"""

import asyncio
import os
import sys
import time

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

# The image has Open WebUI in the folder where it starts, and not among its packages.
sys.path.insert(0, os.getcwd())
# Else importing its configuration would migrate, in `wait` too.
os.environ["ENABLE_DB_MIGRATIONS"] = "false"

from open_webui.config import DEFAULT_CONFIG, run_migrations, seed_registered_defaults
from open_webui.env import DATABASE_URL, OPEN_WEBUI_DIR
from open_webui.models.config import Config


def migrate() -> None:
    """Make the tables for vectors, which importing their client does, then the others, then the first settings."""
    import open_webui.retrieval.vector.factory  # noqa: F401

    run_migrations()
    asyncio.run(seed_registered_defaults())
    print("The database of Open WebUI is at the version of this image.")


def wait() -> None:
    """Return when the database is as `migrate` leaves it. A database that is not there yet is waited for."""
    revisions = set(ScriptDirectory(str(OPEN_WEBUI_DIR / "migrations")).get_heads())
    settings = {key for key in DEFAULT_CONFIG if Config.persistent_enabled_for(key)}
    engine = create_engine(DATABASE_URL)
    while True:
        try:
            with engine.connect() as connection:
                found = set(MigrationContext.configure(connection).get_current_heads())
                if found == revisions and settings <= set(connection.scalars(text("SELECT key FROM config"))):
                    return
            print("The Job open-webui-migration has not brought the database to this version yet.", flush=True)
        except (OperationalError, ProgrammingError) as error:
            print(f"The database is not ready: {error.orig}", flush=True)
        time.sleep(3)


{"migrate": migrate, "wait": wait}[sys.argv[1]]()
