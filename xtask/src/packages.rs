//! Which Debian packages a chore needs: named here and nowhere else.
